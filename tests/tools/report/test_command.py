"""The command: one page or a comparison, JSON, and one clear message for what can't be shown."""

import json
from pathlib import Path

import pytest

from accel_train.cli import main
from accel_train.errors import UserError
from accel_train.tools.report.command import plain, write_page
from tests.tools.report.conftest import SCORE, TOTAL, MakeRun, falling, train_line


def test_a_page_of_one_run_lies_in_its_folder(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run("first")
    before = {path: path.read_bytes() for path in run.iterdir()}
    assert main(["report", str(run)]) == 0
    assert "first (done, all 100 steps, text_to_image_mean_recall 60.00" in capsys.readouterr().out
    html = (run / "report.html").read_text(encoding="utf-8")
    for heading in ("At a glance", "Loss and scores", "Rates and gradients", "Speed", "Incidents", "Configuration"):
        assert f">{heading}</h2>" in html
    assert "http://" not in html.replace("http://www.w3.org", "") and "https://" not in html
    assert {path: path.read_bytes() for path in before} == before, "nothing of the run is changed"
    assert {path.name for path in run.iterdir()} == {path.name for path in before} | {"report.html"}
    assert main(["report", str(run)]) == 0, "a page is replaced"


def test_several_runs_are_compared(make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [make_run("a"), make_run("b", "seed=1", lines=falling(1)), make_run("c", "optimizer.towers.image.lr=1e-4")]
    monkeypatch.chdir(tmp_path)
    assert main(["report", *map(str, runs)]) == 0
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "a (2 seeds)" in html
    assert "optimizer.towers.image.lr" in html and "0.0001" in html
    assert 'class="band c0"' in html, "from the lowest to the highest seed"
    assert not (runs[0] / "report.html").exists()


def test_json_holds_the_same_facts(make_run: MakeRun, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    lines = [*falling(), train_line(TOTAL + 1, 1.0).replace('"grad_norm": 3.0', '"grad_norm": Infinity')]
    runs = [make_run("x/run"), make_run("y/run", "seed=1", lines=lines)]
    page = tmp_path / "page.html"
    assert main(["report", *map(str, runs), "--json", "--output", str(page)]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert found["page"] == str(page) and page.is_file()
    assert [run["name"] for run in found["runs"]] == ["x/run", "y/run"], "folders of one name are told apart"
    assert found["runs"][1]["series"]["train"]["grad_norm"]["max"] is None
    (group,) = found["comparison"]["groups"]
    assert group["scores"][SCORE] == {"mean": pytest.approx(0.6), "half_width_95": pytest.approx(0.0), "count": 2}
    assert found["comparison"]["differences"] == [{"key": "seed", "values": {"x/run": 0, "y/run": 1}}]


def test_a_run_that_goes_on_has_a_page(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run()
    with (run / "metrics.jsonl").open("a") as file:
        file.write(train_line(110, 1.0)[:70])
    (run / "run.lock").write_text("")
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().err == ""
    html = (run / "report.html").read_text(encoding="utf-8")
    assert "still being written" in html and "running" in html


def test_damaged_lines_are_said_on_the_page_and_beside_it(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(lines=[*falling(), "{oops", train_line(110, 1.0)])
    assert main(["report", str(run)]) == 0
    words = "line 14 of 15 can't be read"
    assert words in capsys.readouterr().err.replace("&#39;", "'")
    assert words in (run / "report.html").read_text(encoding="utf-8").replace("&#39;", "'")


def test_what_names_hold_never_becomes_a_part_of_the_page(make_run: MakeRun) -> None:
    evil = "</script><img src=x onerror=alert(1)>"
    log = f"2026-03-01 10:00:00 engine ddp (X) on 1 x cpu\n2026-03-01 10:00:01 warning: {evil}\n"
    run = make_run(lines=[*falling(), train_line(110, 1.0, **{evil: 2.0, f"lr/{evil}": 1.0})], log=log)
    assert main(["report", str(run)]) == 0
    html = (run / "report.html").read_text(encoding="utf-8")
    assert "<img" not in html and html.count("</script>") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{run}/none"], "is no folder. Give the run_dir of a run."),
        (["{tmp}"], "is not the folder of a run that has begun"),
        (["{run}", "{run}/../run"], "is given more than once"),
        (["{run}", "--output", "{tmp}/none/page.html"], "is no folder. Make it first"),
        (["{run}", "--output", "{tmp}"], "it must name the file of the page"),
        ([], "the following arguments are required: RUN"),
    ],
)
def test_bad_input_is_one_clear_message(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    run = make_run()
    assert main(["report", *(argument.format(run=run, tmp=tmp_path) for argument in arguments)]) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.html")) and not list(tmp_path.rglob("*.partial"))


def test_a_page_that_can_not_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "page.html"
    target.write_text("old")

    def full(self: Path, *_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UserError, match="No space left on device"):
        write_page(target, "new")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_hundred_thousand_lines_make_a_small_page(make_run: MakeRun) -> None:
    run = make_run(lines=[train_line(step, 1 + (step == 77_777)) for step in range(1, 100_001)])
    assert main(["report", str(run)]) == 0
    assert (run / "report.html").stat().st_size < 400_000
    assert "77777" in (run / "report.html").read_text(), "the spike of one step is still there"


def test_numbers_without_an_end_are_null_in_json() -> None:
    assert plain({"a": [1.0, float("inf")], "b": (float("nan"), "x")}) == {"a": [1.0, None], "b": [None, "x"]}
