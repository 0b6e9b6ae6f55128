"""What is known of a run: how far it is, whether it goes on, how it ended, what is worth knowing."""

import json
import os
import time
from pathlib import Path

import pytest

from accel_train.errors import UserError
from accel_train.tools.report.facts import as_json, facts_of, remarks
from accel_train.tools.report.record import read_record
from tests.tools.report.conftest import SCORE, MakeRun, story, train_line, valid_line


def test_facts_of_a_run_that_is_done(make_run: MakeRun) -> None:
    facts = facts_of(read_record(make_run("first")))
    assert (facts.name, facts.status, facts.step, facts.total_steps, facts.seed) == ("first", "done", 100, 100, 0)
    assert (facts.score, facts.best_step) == (SCORE, 100)
    assert facts.best_value == pytest.approx(0.6)
    assert facts.best_scores == {SCORE: pytest.approx(0.6), "text_to_image_recall@1": pytest.approx(0.3)}
    assert facts.samples_per_second == pytest.approx(155)
    assert facts.waiting_for_data == pytest.approx(0.05)
    assert facts.last_loss == pytest.approx(facts_of(read_record(make_run("same"))).last_loss)
    assert facts.num_parameters == 4000


@pytest.mark.parametrize(
    ("ending", "status"),
    [
        ("done: 100 steps", "done"),
        ("ended, stopped: stopped by SIGTERM at step 60 of 100; a checkpoint was written", "stopped"),
        ("ended, failed: step 60: the gradient is not finite", "failed"),
        ("", "silent"),
    ],
)
def test_how_it_ended(make_run: MakeRun, ending: str, status: str) -> None:
    assert read_record(make_run(log=story(last=60, ending=ending))).status == status


def test_a_run_that_resumed_after_it_stopped_is_not_stopped(make_run: MakeRun) -> None:
    again = "2026-03-01 11:00:00 engine ddp (DataParallel) on 2 x cpu\n2026-03-01 11:00:01 resuming from x at step 60 of 100"
    log = story(last=60, ending="ended, stopped: stopped by SIGTERM at step 60 of 100")
    record = read_record(make_run(log=f"{log}\n{again}"))
    assert record.status == "silent"
    assert facts_of(record).num_starts == 2


def test_a_sign_of_life_means_that_it_runs(make_run: MakeRun) -> None:
    folder = make_run(log=story(last=50, ending=""))
    (folder / "run.lock").write_text("")
    facts = facts_of(read_record(folder))
    assert facts.status == "running" and facts.seconds_left == pytest.approx(100)
    long_ago = time.time() - 1000
    os.utime(folder / "run.lock", (long_ago, long_ago))
    assert read_record(folder).status == "silent"


def test_the_best_evaluation_is_the_first_of_equal_ones(make_run: MakeRun) -> None:
    lines = [valid_line(step, score) for step, score in ((10, 0.2), (20, 0.5), (30, 0.5), (40, 0.1))]
    assert read_record(make_run(lines=lines)).best == (20, 0.5)


def test_what_is_worth_knowing(make_run: MakeRun) -> None:
    lines = [train_line(10, 1.0, waiting_for_data=0.4)]
    lines += [valid_line(step, score) for step, score in ((10, 0.6), (20, 0.5), (30, 0.4), (40, 0.3))]
    said = "\n".join(
        remarks(read_record(make_run(lines=lines, log=story("2026-03-01 10:04:00 advice: warm up longer."))))
    )
    assert "Training waited for data for 40% of the time" in said
    assert "best at step 10 and has not been reached in the 3 evaluations since" in said
    assert "warm up longer." in said
    short = [valid_line(step, score) for step, score in ((10, 0.3), (20, 0.6), (30, 0.5))]
    (remark,) = remarks(read_record(make_run("short", lines=short)))
    assert "has not been reached in the evaluation since; the last one is 0.5." in remark
    assert remarks(read_record(make_run("calm"))) == []


def test_the_score_that_judges_is_the_task_s_where_none_is_named(make_run: MakeRun) -> None:
    run = make_run("a", "evaluation.best_score=null")
    assert read_record(run).best_score == "mean_recall", "the first one of the task, not of the file"
    assert read_record(make_run("b")).best_score == SCORE


def test_a_run_without_an_evaluation(make_run: MakeRun) -> None:
    run = make_run(
        "a",
        "data.valid_split=null",
        "evaluation.best_score=null",
        "evaluation.evaluate_every=1 epoch",
        lines=[train_line(10, 1.0)],
    )
    facts = facts_of(read_record(run))
    assert facts.score is None and facts.best_step is None and facts.best_scores == {}


def test_a_task_that_is_gone_is_said(make_run: MakeRun) -> None:
    run = make_run()
    path = run / "config.yaml"
    path.write_text("task: no_such_module:Task\n" + path.read_text().replace("task: contrastive\n", ""))
    record = read_record(run)
    assert any("no_such_module" in complaint for complaint in record.complaints)
    assert record.best_score == SCORE, "the first one of metrics.jsonl"


def test_every_fact_is_in_the_json(make_run: MakeRun) -> None:
    found = json.loads(json.dumps(as_json(read_record(make_run(log=story("2026-03-01 10:04:00 warning: odd"))))))
    assert found["best_value"] == pytest.approx(0.6)
    assert found["series"]["train"]["loss"]["count"] == 10
    assert found["not_default"]["data.image_size"] == 64
    assert found["launches"][0]["world_size"] == 2
    assert [event["kind"] for event in found["incidents"]] == ["warning", "done"]
    assert len(found["groups"][0]["groups"]) == 4


def test_no_run_there_is_one_clear_message(make_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no folder"):
        read_record(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"there is no config\.yaml and no metrics\.jsonl"):
        read_record(tmp_path)
    folder = make_run()
    (folder / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="holds no metrics yet"):
        read_record(folder)
