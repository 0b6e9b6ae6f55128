import csv
import io
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from accel_train.config.load import load_config
from accel_train.errors import CheckFailed, Stopped
from accel_train.tools.sweep.results import summary
from accel_train.tools.sweep.study import open_study
from accel_train.tools.sweep.worker import work
from tests.tools.sweep.conftest import HILL, SCORE


def run(sweep) -> tuple[dict, str]:
    console = Console(file=io.StringIO(), width=200)
    try:
        work(sweep, SCORE, console)
    finally:
        printed = console.file.getvalue()
    return summary(open_study(sweep), sweep, SCORE), printed


def rows(sweep) -> list[dict[str, str]]:
    return list(csv.DictReader((sweep.folder / "trials.csv").read_text(encoding="utf-8").splitlines()))


@pytest.mark.slow
def test_finds_the_top_of_a_known_hill(make_sweep):
    sweep = make_sweep(trials=22)
    found, _ = run(sweep)
    assert found["counts"]["complete"] == 22
    best = found["best"]
    assert best["score"] > 0.97
    assert 3e-4 < best["values"]["optimizer.towers.text.lr"] < 3e-3
    assert best["score"] == max(trial["score"] for trial in found["trials"])
    assert max(found["importance"], key=found["importance"].get) == "optimizer.towers.text.lr"  # it falls off far more
    assert sum(found["importance"].values()) == pytest.approx(1)


def test_first_trial_is_the_configuration_as_it_is(make_sweep):
    sweep = make_sweep(trials=1)
    found, _ = run(sweep)
    own = next(tower for tower in sweep.base.optimizer.towers if tower.name == "text")
    assert found["trials"][0]["values"] == {
        "optimizer.towers.text.lr": own.lr,
        "optimizer.towers.text.layer_decay": own.layer_decay,
    }


def test_best_yaml_is_a_configuration_of_its_own(make_sweep):
    sweep = make_sweep(trials=5)
    found, _ = run(sweep)
    config = load_config(sweep.folder / "best.yaml")
    text = next(tower for tower in config.optimizer.towers if tower.name == "text")
    assert text.lr == found["best"]["values"]["optimizer.towers.text.lr"]
    assert config.run_dir == str(sweep.folder / "best")
    assert config.model_copy(update={"run_dir": "", "optimizer": None}) == sweep.base.model_copy(
        update={"run_dir": "", "optimizer": None}
    )
    head = (sweep.folder / "best.yaml").read_text(encoding="utf-8").split("\n\n")[0]
    assert f"{found['best']['score']:.4f}" in head
    assert f"trial {found['best']['trial']}" in head
    assert f"accel-train train {sweep.folder / 'best.yaml'}" in head


def test_derived_values_reach_the_trials(make_sweep):
    search = [*HILL, "data.augmentation.horizontal_flip== 1 - optimizer.towers.text.layer_decay"]
    sweep = make_sweep(search, trials=3)
    found, _ = run(sweep)
    for trial in found["trials"]:
        config = load_config(Path(trial["run_dir"]) / "sweep_trial.yaml")
        assert config.data.augmentation.horizontal_flip == 1 - trial["values"]["optimizer.towers.text.layer_decay"]


@pytest.mark.parametrize(
    ("seed", "reason"),
    [(1, "data.path: there is no such dataset."), (2, "exit code 1: RuntimeError: out of luck"), (3, "is no number")],
)
def test_a_failed_trial_is_recorded_with_its_reason_and_the_sweep_goes_on(make_sweep, seed, reason):
    sweep = make_sweep([*HILL, f"seed=choice [0, {seed}]"], trials=6, max_failures=6)
    found, printed = run(sweep)
    failed = [trial for trial in found["trials"] if trial["state"] == "failed"]
    assert failed and {trial["values"]["seed"] for trial in failed} == {seed}
    assert all(reason in trial["reason"] for trial in failed)
    assert found["counts"]["complete"] + len(failed) == 6 and found["counts"]["complete"] > 0
    assert reason in printed
    assert [row["reason"] != "" for row in rows(sweep)] == [trial["state"] == "failed" for trial in found["trials"]]


def test_values_that_contradict_each_other_fail_that_trial_alone(make_sweep):
    # Each value is right beside the first of the other key; the second ones together are wrong.
    search = ["data.global_batch_size=choice [64, 16]", "data.micro_batch_size=choice [16, 32]"]
    sweep = make_sweep(search, trials=8, max_failures=8)
    found, _ = run(sweep)
    for trial in found["trials"]:
        values = trial["values"]
        fits = values["data.micro_batch_size"] <= values["data.global_batch_size"]
        assert trial["state"] == ("complete" if fits else "failed")
        assert fits or "data.micro_batch_size" in trial["reason"]
    assert found["counts"]["failed"] > 0


def test_too_many_failures_in_a_row_stop_the_worker(make_sweep):
    sweep = make_sweep(["seed=choice [1, 2]"], trials=20, max_failures=3)
    with pytest.raises(CheckFailed, match="3 trials in a row failed"):
        run(sweep)
    assert [row["state"] for row in rows(sweep)] == ["failed"] * 3
    with pytest.raises(CheckFailed):  # started again, it tries again
        run(sweep)
    assert len(rows(sweep)) == 6


@pytest.mark.slow
def test_a_trial_that_is_behind_is_ended_early(make_sweep, monkeypatch):
    monkeypatch.setenv("TOY_EVALUATIONS", "6")
    monkeypatch.setenv("TOY_PAUSE", "0.15")
    sweep = make_sweep(["optimizer.towers.text.lr=choice [1e-3, 1e-6]"], trials=9, pruner="median", seed=1)
    monkeypatch.setattr("accel_train.tools.sweep.trial_run.POLL_SECONDS", 0.05)
    found, printed = run(sweep)
    pruned = [trial for trial in found["trials"] if trial["state"] == "pruned"]
    assert pruned and all(trial["values"]["optimizer.towers.text.lr"] == 1e-6 for trial in pruned)
    assert all(trial["trial"] >= 5 for trial in pruned)  # five trials are compared with, first
    assert all(2 <= trial["evaluations"] < 6 for trial in pruned)
    assert "was pruned after" in printed
    assert found["best"]["values"]["optimizer.towers.text.lr"] == 1e-3


def test_checkpoints_of_the_best_trial_alone_stay(make_sweep):
    sweep = make_sweep(trials=4)
    found, _ = run(sweep)
    kept = [folder.parent.name for folder in sweep.folder.glob("trials/*/checkpoints")]
    assert kept == [f"{found['best']['trial']:04d}"]
    sweep = make_sweep(trials=6, keep_checkpoints="all")
    found, _ = run(sweep)
    assert len(list(sweep.folder.glob("trials/*/checkpoints"))) == 3  # the two new ones stay too


def test_more_trials_may_be_asked_for_later(make_sweep):
    first, _ = run(make_sweep(trials=3))
    more, _ = run(make_sweep(trials=5))
    assert more["trials"][:3] == first["trials"]
    assert len(more["trials"]) == 5
    again, printed = run(make_sweep(trials=5))
    assert again == more and printed == ""


WORKER = """
import sys
from rich.console import Console
from accel_train.errors import Stopped
from accel_train.tools.sweep.settings import load_sweep
from accel_train.tools.sweep.worker import work
folder, launch, trials, config, *search = sys.argv[1:]
options = {"sweep_dir": folder, "launch": launch, "trials": int(trials), "pruner": "none"}
try:
    work(load_sweep(config, [], options, search), "text_to_image_mean_recall", Console())
except Stopped as stopped:
    sys.exit(stopped.exit_code)
"""


@pytest.fixture
def start_worker():
    started = []
    yield lambda sweep: started.append(begin(sweep)) or started[-1]
    for worker in started:
        worker.kill()
        worker.wait()


def begin(sweep) -> subprocess.Popen:
    settings = sweep.settings
    search = [f"{key}={form}" for key, form in settings.search.items()]
    arguments = [str(sweep.folder), settings.launch, str(settings.trials), settings.config, *search]
    return subprocess.Popen([sys.executable, "-c", WORKER, *arguments])


def wait_for(path: Path) -> None:
    patience = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < patience, f"{path} did not come"
        time.sleep(0.05)


def starts(folder: Path) -> list[int]:
    return [int(line) for line in (folder / "starts").read_text(encoding="utf-8").split()]


def is_alive(pid: int) -> bool:
    """A zombie is dead."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_a_stopped_worker_saves_its_trial_and_the_next_goes_on_with_it(make_sweep, start_worker, monkeypatch):
    monkeypatch.setenv("TOY_PAUSE", "0.3")
    monkeypatch.setenv("TOY_EVALUATIONS", "8")
    sweep = make_sweep(trials=1)
    worker = start_worker(sweep)
    first = sweep.folder / "trials" / "0000"
    wait_for(first / "metrics.jsonl")
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(60) == Stopped.exit_code
    evaluated = (first / "metrics.jsonl").read_text(encoding="utf-8")
    assert 0 < evaluated.count("\n") < 9
    monkeypatch.setenv("TOY_PAUSE", "0")
    found, printed = run(sweep)
    assert "trial 0 goes on" in printed
    assert len(starts(first)) == 2
    assert (first / "metrics.jsonl").read_text(encoding="utf-8").startswith(evaluated)
    assert found["trials"][0]["state"] == "complete" and found["trials"][0]["evaluations"] == 8


@pytest.mark.slow
def test_a_killed_worker_loses_nothing_and_its_trial_is_never_run_twice_at_once(make_sweep, start_worker, monkeypatch):
    monkeypatch.setenv("TOY_PAUSE", "0.3")
    monkeypatch.setenv("TOY_EVALUATIONS", "8")
    sweep = make_sweep(trials=2)
    worker = start_worker(sweep)
    first = sweep.folder / "trials" / "0000"
    wait_for(first / "metrics.jsonl")
    worker.kill()
    worker.wait()
    (orphan,) = starts(first)
    assert is_alive(orphan)
    monkeypatch.setenv("TOY_PAUSE", "0")
    found, printed = run(sweep)
    assert not is_alive(orphan)
    assert printed.startswith("trial 0 goes on")
    assert [trial["state"] for trial in found["trials"]] == ["complete", "complete"]
    steps = (first / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(steps) == len(set(steps)) == 9


@pytest.mark.slow
def test_workers_share_the_trials_and_start_none_too_many(make_sweep, start_worker, monkeypatch):
    monkeypatch.setenv("TOY_PAUSE", "0.05")
    sweep = make_sweep(trials=7)
    workers = [start_worker(sweep) for _ in range(2)]
    assert [worker.wait(120) for worker in workers] == [0, 0]
    found, printed = run(sweep)
    assert printed == ""  # nothing is left
    assert found["counts"] == {"complete": 7, "pruned": 0, "failed": 0, "running": 0}
    assert all(len(starts(Path(trial["run_dir"]))) == 1 for trial in found["trials"])
    drawn = [tuple(trial["values"].values()) for trial in found["trials"]]
    assert len(set(drawn)) == 7
    assert not any(math.isnan(trial["score"]) for trial in found["trials"])
