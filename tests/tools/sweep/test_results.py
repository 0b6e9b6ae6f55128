import io
import math
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from accel_train.errors import CheckFailed
from accel_train.stopping import StopRequest
from accel_train.tools.sweep.command import check_found
from accel_train.tools.sweep.pictures import draw_pictures
from accel_train.tools.sweep.results import best_trial, short_names, summary, table, write_results
from accel_train.tools.sweep.study import open_study, take_trial
from accel_train.tools.sweep.worker import ENDS
from tests.tools.sweep.conftest import HILL, SCORE

SEARCH = [
    *HILL,
    "optimizer.betas=choice [[0.9, 0.98], [0.9, 0.999]]",
    "seed=int 0 4",
    "log.log_every=choice [1 step, 2 steps]",
]


@pytest.fixture
def filled(make_sweep):
    """A study whose score depends on the rate alone: mostly complete, one failed, one ended early, one running."""
    sweep = make_sweep(SEARCH, trials=16)
    study = open_study(sweep)
    while (taken := take_trial(study, sweep, StopRequest())) is not None:
        number, trial = taken.trial.number, taken.trial
        if number == 2:
            trial.set_user_attr("reason", "the gradient is not finite, [bold]it said[/bold]")
            study.tell(trial, state=ENDS["failed"])
        elif number < 15:
            score = 1 - 0.2 * (math.log10(taken.values["optimizer.towers.text.lr"]) + 3) ** 2
            trial.set_user_attr("best_score", score)
            trial.set_user_attr("best_step", 30)
            trial.report(score, 1)
            study.tell(trial, score) if number != 5 else study.tell(trial, state=ENDS["pruned"])
        taken.claim.release()
        if number == 15:
            break
    return sweep, study


def test_the_summary_counts_and_ranks(filled):
    sweep, study = filled
    found = summary(study, sweep, SCORE)
    assert found["counts"] == {"complete": 13, "pruned": 1, "failed": 1, "running": 1}
    assert found["best"]["score"] == max(trial["score"] for trial in found["trials"] if trial["state"] == "complete")
    assert best_trial(study).number == found["best"]["trial"]
    assert next(iter(found["importance"])) == "optimizer.towers.text.lr"
    assert found["importance"]["optimizer.towers.text.lr"] > 0.5
    assert len(found["trials"][15]["values"]) == len(sweep.space.searched)


def test_the_table_shows_the_best_and_says_what_is_left_out(filled):
    sweep, study = filled
    console = Console(width=200, file=io.StringIO())
    console.print(table(summary(study, sweep, SCORE)))
    printed = console.file.getvalue()
    assert "13 complete, 1 pruned, 1 failed, 1 running" in printed
    assert f"{best_trial(study).value:.4f}" in printed
    assert "5 more in trials.csv" in printed
    assert "text.lr" in printed and "optimizer.towers" not in printed


def test_pictures_are_drawn(filled):
    sweep, study = filled
    written = draw_pictures(summary(study, sweep, SCORE), sweep)
    assert [path.name for path in written] == ["history.png", "importance.png"]
    for path in written:
        with Image.open(path) as image:
            colours = image.convert("RGB").getcolors(maxcolors=2**24)
            assert image.width > 1000 and len(colours) > 20
            assert any(colour == (0xC8, 0x55, 0x3D) for _, colour in colours)  # the failed trial, the best trial


def test_nothing_is_drawn_of_nothing(make_sweep):
    sweep = make_sweep()
    found = summary(open_study(sweep), sweep, SCORE)
    assert draw_pictures(found, sweep) == []
    assert found["best"] is None and found["importance"] == {}


def test_results_are_replaced_as_a_whole(filled):
    sweep, study = filled
    write_results(study, sweep, SCORE)
    write_results(study, sweep, SCORE)
    names = {path.name for path in sweep.folder.iterdir()}
    assert {"trials.csv", "best.yaml"} <= names
    assert not any("partial" in name for name in names)
    lines = Path(sweep.folder / "trials.csv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 17
    assert lines[3].startswith("2,failed,,") and "not finite" in lines[3]


def test_names_are_as_short_as_they_can_be():
    keys = ["optimizer.towers.text.lr", "optimizer.towers.image.lr", "seed", "a.b.c", "x.b.c"]
    assert short_names(keys) == ["text.lr", "image.lr", "seed", "a.b.c", "x.b.c"]


def test_a_sweep_without_a_complete_trial_is_a_failure():
    found = {"best": None, "counts": {"running": 0}, "trials": [{"reason": "a"}, {"reason": "b"}]}
    with pytest.raises(CheckFailed, match="none of the 2 trials is complete; the last reason: b"):
        check_found(found)
    check_found(found | {"counts": {"running": 1}})
    check_found(found | {"best": {}})
