"""The pages in a browser: no errors, nothing beyond the edge at 400 and 1400 pixels, enough contrast in the dark and in the
light, a name for everything, and all of it by keyboard."""

from pathlib import Path

import pytest

from accel_train.tools.page.page import page
from accel_train.tools.report import comparison, one_run
from accel_train.tools.report.record import read_record
from tests.rated import write_dataset as write_rated
from tests.tools.page.browser import WIDTHS, Audit, audit, install_chromium
from tests.tools.report.conftest import falling, make_folder, story, train_line, valid_line, write_table
from tests.tools.report.test_predictions import caption_rows, label_rows, move_dataset, rating_rows, retrieval_rows

pytestmark = pytest.mark.slow
PAGES = ("retrieval", "classifier", "scorer", "captions", "long", "several", "bare")
Audits = dict[str, dict[int, Audit]]


def whole(folder: Path) -> str:
    record = read_record(folder)
    return page(record.name, one_run.sections(record), subtitle=one_run.subtitle(record))


def written_pages(folder: Path) -> dict[str, str]:
    troubled = story(
        "2026-03-01 10:03:00 warning: step 41 is skipped by all ranks (1 in a row): the gradient is not finite",
        "2026-03-01 10:04:00 advice: warm up longer",
        last=60,
        ending="ended, failed: step 60: " + "a_name_that_is_very_long/" * 8,
    )

    def make(name: str, *overrides: str, **given: object) -> Path:
        return make_folder(folder / name, *overrides, **given)  # type: ignore[arg-type]

    retrieval, classifier, scorer, captions = (make(name, log=troubled) for name in PAGES[:4])
    write_table(retrieval / "predictions" / "valid.csv", retrieval_rows())
    write_table(classifier / "predictions" / "valid.csv", label_rows(num_classes=25))
    dataset = write_rated(folder / "rated")
    move_dataset(scorer, dataset)
    write_table(scorer / "predictions" / "valid.csv", rating_rows(dataset))
    write_table(captions / "predictions" / "valid.csv", caption_rows())
    lines = [
        train_line(step, 1 + 1 / step, **{f"lr/more.{k:02d}": 1e-4 / (k + 1) for k in range(12)})
        for step in range(1, 4000)
    ]
    long = make("long", lines=[*lines, valid_line(3999, 0.5, srocc_quality=-0.2, srocc_other=0.3)])
    runs = [
        make("seed0"),
        make("seed1", "seed=1", lines=falling(1)),
        make("other_rate", "optimizer.towers.image.lr=1e-4"),
    ]
    records = [read_record(run) for run in runs]
    bare = make("bare", lines=[train_line(10, 1.0)], log="")
    return {
        **{run.name: whole(run) for run in (retrieval, classifier, scorer, captions, long, bare)},
        "several": page("3 runs", comparison.sections(records), subtitle="three"),
    }


@pytest.fixture(scope="module", params=["light", "dark"])
def audits(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Audits]:
    install_chromium()
    pages = written_pages(tmp_path_factory.mktemp("runs"))
    assert set(pages) == set(PAGES)
    return request.param, audit(pages, tmp_path_factory.mktemp("browser"), dark=request.param == "dark")


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_without_fault(audits: tuple[str, Audits], name: str, width: int) -> None:
    scheme, found = audits
    own = found[name][width]
    assert own.is_dark == (scheme == "dark")
    assert own.errors == []
    assert own.faults == []
    assert own.smallest_contrast >= 4.5
    assert own.num_charts >= 3 and own.readings


BROKEN = """<!doctype html><html><head><title>x</title>
<style>.pale { color: #bbb } .broad { width: 1600px }</style></head><body>
<main><h1>One</h1><h3>Three</h3><p class="pale">Pale words</p><p class="broad">Broad</p><img src="data:,">
<figure><div role="img"></div></figure><table><tr><td>1</td></tr></table><a href="#none">There</a></main>
<script>nothing.at.all;</script></body></html>"""


def test_the_audit_sees_faults(tmp_path: Path) -> None:
    install_chromium()
    own = audit({"broken": BROKEN}, tmp_path, dark=False)["broken"][400]
    assert any("nothing is not defined" in error for error in own.errors)
    said = "\n".join(own.faults)
    rules = (
        "contrast",
        "page scrolls sideways",
        "beyond the edge",
        "language",
        "heading level skipped",
        "image without a text",
    )
    rules += ("figure without a title", "no label", "table without a caption", "row without a header", "dead link")
    assert [rule for rule in rules if rule not in said] == []
