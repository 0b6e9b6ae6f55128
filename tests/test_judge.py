"""What scores decide: the best step, early stopping, a warning below the start."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from accel_train import judge
from accel_train.checkpoint.state import TrainState
from accel_train.evaluate import Evaluation
from accel_train.inject import Faults
from accel_train.run import ran_out_of_patience
from accel_train.run_log import RunLog

NAME = "mean_recall"


class Silent:
    """An engine with no tracker."""

    def track(self, values: dict[str, float], step: int) -> None:
        assert values

    is_main = True

    @staticmethod
    def together(action: Callable[[], None]) -> None:
        action()


def judged(
    scores: list[float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, first_step: int = 1, **early: Any
) -> tuple[TrainState, bool, str]:
    """The state after evaluations with these scores, one a step, whether that ended the run, and what run.log says."""
    section = SimpleNamespace(best_score=NAME, early_stopping=SimpleNamespace(**early) if early else None)
    config = SimpleNamespace(evaluation=section, data=SimpleNamespace(valid_split="valid"), advice="on")
    log = RunLog(tmp_path, is_main=True, rank=0)
    task = SimpleNamespace(best_score=NAME, has_prediction_rows=False)
    run: Any = SimpleNamespace(config=config, state=TrainState(), engine=Silent(), task=task, log=log, scores={})
    run.faults = Faults((), rank=0, log=log)
    for step, score in enumerate(scores, start=first_step):
        if ran_out_of_patience(config, run.state):
            break
        run.state.step = step
        monkeypatch.setattr(judge, "evaluate", lambda *_, score=score: Evaluation({NAME: score}, {}))
        judge.evaluate_and_judge(run)
    log.close()
    stopped_early = ran_out_of_patience(config, run.state)
    return run.state, stopped_early, (tmp_path / "run.log").read_text(encoding="utf-8")


def test_the_best_step_is_the_first_of_equals(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    state, _, _ = judged([0.1, 0.4, 0.4, 0.2], monkeypatch, tmp_path)
    assert (state.best_step, state.best_score) == (2, 0.4)


def test_small_gains_that_add_up_are_not_a_standstill(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    state, stopped_early, _ = judged(
        [0.100, 0.109, 0.118, 0.127, 0.136], monkeypatch, tmp_path, patience=2, min_delta=0.01
    )
    assert not stopped_early
    assert state.best_step == 5


def test_a_standstill_ends_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    state, stopped_early, said = judged([0.3, 0.305, 0.301, 0.5], monkeypatch, tmp_path, patience=2, min_delta=0.01)
    assert stopped_early
    assert (state.step, state.best_step) == (3, 2)
    assert "has not risen by more than 0.01 in 2 evaluations" in said


def test_patience_of_one_is_said_in_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _, stopped_early, said = judged([0.3, 0.3], monkeypatch, tmp_path, patience=1, min_delta=0.0)
    assert stopped_early and "has not risen in 1 evaluation." in said


def test_a_score_below_the_start_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _, _, said = judged([0.5, 0.4], monkeypatch, tmp_path, first_step=0)
    assert "mean_recall is 0.4000, below the 0.5000 before the first step" in said


def test_without_a_start_score_nothing_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _, _, said = judged([-0.5, -0.6], monkeypatch, tmp_path)
    assert "before the first step" not in said
