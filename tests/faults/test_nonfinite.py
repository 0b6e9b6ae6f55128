"""A step that is not finite is passed over by all ranks together, or the run goes back, and a kill changes none of it."""

import json
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch

ENGINES = [("ddp", 1), ("ddp", 2), ("zero1", 2), ("zero2", 2), ("zero3", 2), ("fsdp2", 2)]
MODULE = "text_model.encoder.layer.0.output.dense"
BAD = 5
"""The step that is poisoned where nothing else is said; checkpoints are saved every third step."""
ROW = [8, 9, 10]
"""Poisoned steps in a row, one of them with a checkpoint."""
ROLLBACK = "nonfinite={max_in_a_row: 2, then: rollback, lr_factor: 0.5, lr_window: 4 steps}"
SHORT = "num_epochs=2"
STOPPED = 1


def poison(*steps: int, module: str | None = MODULE, rollbacks: int = 1) -> dict[str, Any]:
    return {"steps": list(steps), "module": module, "rollbacks": rollbacks}


def assert_same(ours: Any, theirs: Any) -> None:
    assert ours.metrics() == theirs.metrics()
    found, expected = ours.whole_state(), theirs.whole_state()
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


def report(run: Any, step: int) -> dict[str, Any]:
    return json.loads((run.run_dir / "nonfinite" / f"step_{step:08d}.json").read_text(encoding="utf-8"))


def without(run: Any, name: str, *steps: int) -> Any:
    """A copy of the run as a kill would have left it before these checkpoints were saved."""
    copy = run.copy(run.folder.with_name(name))
    for step in steps:
        shutil.rmtree(copy.checkpoints / f"step_{step:08d}")
    return copy


@pytest.fixture(scope="module")
def left_out(server: Any, dataset: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One process that leaves the batch of the step BAD out: its optimizer is not called there."""
    from tests.faults.conftest import Experiment, base_config

    run = Experiment(server, tmp_path_factory.mktemp("left_out"), base_config(dataset), [SHORT])
    run.finish(poison=poison(BAD, module=None))
    return run


@pytest.mark.parametrize(("engine", "ranks"), ENGINES)
def test_all_ranks_skip_the_step(experiment: Callable[..., Any], left_out: Any, engine: str, ranks: int) -> None:
    """Only the last rank computed anything that is not a number."""
    run = experiment(f"engine={engine}", SHORT)
    output = run.finish(ranks=ranks, poison=poison(BAD))
    assert f"step {BAD} is skipped by all ranks (1 in a row): the gradient of 8 of 8 groups is not finite" in output

    expected = [row["loss"] for row in left_out.metrics() if row["split"] == "train" and row["step"] != BAD]
    assert run.losses() == pytest.approx(expected, abs=1e-5)
    found, wanted = run.whole_state(), left_out.whole_state()
    tolerance = 0 if ranks == 1 else 2e-4
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=tolerance, msg=name)
    assert run.state()["skipped"] == [BAD]
    assert run.state()["samples"] == 7 * 8
    assert [row for row in run.metrics() if row["split"] == "skipped"] == [
        {"step": BAD, "split": "skipped", "epoch": 1.0, "in_a_row": 1.0}
    ]
    said = report(run, BAD)
    assert said["losses"] == {"info_nce": "nan"}
    assert (said["first"]["where"], said["first"]["module"], said["first"]["rank"]) == ("forward", MODULE, ranks - 1)
    assert said["first"]["sample_ids"] == said["sample_ids"][ranks - 1][0]
    assert len({sample for rank in said["sample_ids"] for part in rank for sample in part}) == 8
    assert said["weights"] == []

    resumed = without(run, "resumed", 8)
    assert "at step 6 of 8" in resumed.finish(ranks=ranks)
    assert_same(resumed, run)


def test_a_loss_scale_is_not_to_blame(experiment: Callable[..., Any]) -> None:
    """In fp16 a loss that is not a number is no overflow: the scale stays, and the batch is not taken again."""
    run = experiment("precision=fp16", SHORT)
    run.finish(poison=poison(BAD))
    scales = [row["loss_scale"] for row in run.metrics() if "loss_scale" in row]
    assert scales[3] == scales[4] > 1
    assert run.state()["skipped"] == [BAD]


def test_the_fault_that_can_be_ordered(experiment: Callable[..., Any]) -> None:
    run = experiment("engine=zero2", SHORT)
    run.finish("--inject", f"nan:rank=1@{BAD}", ranks=2)
    said = report(run, BAD)
    assert (said["first"]["module"], said["first"]["rank"]) == ("the model's outputs", 1)
    assert run.state()["skipped"] == [BAD]


@pytest.mark.parametrize(("engine", "ranks"), [("ddp", 1), ("zero2", 2)])
def test_the_first_step(experiment: Callable[..., Any], engine: str, ranks: int) -> None:
    """A checkpoint is saved before the optimizer has made its first update."""
    run = experiment(f"engine={engine}", "num_epochs=1", "checkpoint={save_every: 1 step, keep_last: 9}")
    run.finish(ranks=ranks, poison=poison(1))
    resumed = without(run, "resumed", 2, 3, 4)
    assert "at step 1 of 4" in resumed.finish(ranks=ranks)
    assert_same(resumed, run)


def test_running_statistics_are_spared(experiment: Callable[..., Any]) -> None:
    run = experiment(SHORT)
    bert = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    resnet = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    run.config["model"] = {
        "type": "dual_encoder",
        "image": {"architecture": "resnet", "config": resnet},
        "text": {"architecture": "bert", "config": bert | {"vocab_size": 90}},
        "projection_dim": 8,
        "batch_norm": "local",
    }
    run.config["optimizer"]["towers"] = [{"name": "all", "lr": 1e-3, "layers": [".*"]}]
    run.finish(poison=poison(BAD, module="vision_model.embedder.embedder.convolution"))
    state = run.whole_state()
    assert all(torch.isfinite(value).all() for value in state.values())
    counts = {int(value) for name, value in state.items() if name.endswith("num_batches_tracked")}
    assert counts == {7 * 4}


@pytest.mark.parametrize(("engine", "ranks"), [("ddp", 1), ("zero2", 2), ("fsdp2", 2)])
def test_a_kill_after_going_back(
    experiment: Callable[..., Any], never_killed: Callable[[str, int], Any], engine: str, ranks: int
) -> None:
    """Killed as soon as the rollback counts, with the checkpoint of the bad row still there."""
    length = "num_epochs=4" if ranks == 1 else "num_epochs=3"
    run = experiment(f"engine={engine}", ROLLBACK, length, name="run")
    output = run.finish(ranks=ranks, poison=poison(*ROW))
    assert "going back to run/checkpoints/step_00000006 after step 10" in output
    assert [row["step"] for row in run.metrics() if row["split"] == "train"] == [*range(1, run.state()["step"] + 1)]
    assert [row for row in run.metrics() if row["split"] == "skipped"] == []
    assert [report(run, step)["skipped_in_a_row"] for step in ROW] == [1, 2, 3]
    if ranks == 1:
        rates, usual = (
            [row["lr/text"] for row in r.metrics() if "lr/text" in row] for r in (run, never_killed("ddp", 1))
        )
        factors = [rate / other for rate, other in zip(rates, usual, strict=True)]
        assert factors == pytest.approx([1.0] * 6 + [0.5] * 4 + [1.0] * 6)
        assert run.losses()[:7] == never_killed("ddp", 1).losses()[:7]
        assert run.losses()[7] != never_killed("ddp", 1).losses()[7]

    killed = experiment(f"engine={engine}", ROLLBACK, length, name="killed")
    running = killed.start(ranks=ranks, slow_writes=0.05, poison=poison(*ROW))
    killed.wait_for((killed.run_dir / "rollbacks.json").exists, running)
    running.kill()
    assert killed.steps_on_disk()[-1] == 9
    assert killed.state("step_00000009")["skipped_in_a_row"] == 2
    assert "at step 6 of 1" in killed.finish(ranks=ranks, poison=poison(*ROW))
    assert_same(killed, run)
    assert killed.state()["rollbacks"] == run.state()["rollbacks"]


def test_going_back_behind_the_beginning_of_a_phase(experiment: Callable[..., Any]) -> None:
    """The checkpoint between the phases was saved while steps were skipped, so it does not count."""
    phases = "phases=[{name: whole, start: 4 steps, towers: [{name: text, train_last: all}]}]"
    run = experiment(SHORT, phases, ROLLBACK.replace("2", "1", 1), "checkpoint.in_background=true")
    output = run.finish(poison=poison(4, 5))
    assert "going back to run/checkpoints/step_00000003 after step 5" in output
    assert output.count("phase whole begins at step 4") == 2
    assert [row["step"] for row in run.metrics() if row["split"] == "train"] == [*range(1, 9)]


def test_a_run_goes_back_so_often_and_no_more(experiment: Callable[..., Any]) -> None:
    section = "nonfinite={max_in_a_row: 1, then: rollback, lr_factor: 0.5, lr_window: 1 epoch, max_rollbacks: 2}"
    run = experiment(SHORT, section)
    for _ in range(2):  # the second start finds that the run has gone back before
        output = run.fail(code=STOPPED, poison=poison(5, 6, rollbacks=9))
        assert "The run has gone back 2 times, as nonfinite.max_rollbacks allows." in output
    assert [entry["to"] for entry in json.loads((run.run_dir / "rollbacks.json").read_text())["rollbacks"]] == [3, 3]
    rates = [row["lr/text"] for row in run.metrics() if "lr/text" in row]
    assert rates[3] == pytest.approx(1e-3 / 4)
    run.finish()


def test_too_many_in_a_row_stop_the_run(experiment: Callable[..., Any]) -> None:
    run = experiment(SHORT, "nonfinite.max_in_a_row=1")
    output = run.fail(code=STOPPED, ranks=2, poison=poison(BAD, BAD + 1))
    assert "step 6: the gradient of 8 of 8 groups is not finite" in output
    assert "This is the 2. step in a row, and nonfinite.max_in_a_row is 1." in output
    assert run.steps_on_disk() == [3]
    run.finish(ranks=2)

    early = experiment(SHORT, "nonfinite={max_in_a_row: 0, then: rollback}", name="early")
    output = early.fail(code=STOPPED, poison=poison(1))
    assert "no step has gone well before, so no rate is to blame" in output
    assert "There is no checkpoint from before to go back to" in output


def test_a_replay_finds_the_same_module(experiment: Callable[..., Any]) -> None:
    run = experiment("engine=ddp", SHORT, "checkpoint.keep_last=3")
    run.finish(ranks=2, poison=poison(BAD))
    before = {file: file.read_bytes() for file in run.run_dir.rglob("*") if file.is_file()}
    command = report(run, BAD)["command"].split()[1:]
    assert command == ["replay", "run", "--step", "5"]
    output = run.finish(*command[1:], command="replay", poison=poison(BAD))
    assert f"step {BAD} of run from step_00000003 on one process" in output
    assert f"a forward of {MODULE} (Linear) that is not finite" in output
    assert "here the step is finite" in run.fail(*command[1:], command="replay", code=STOPPED)
    ordinary = run.finish("run", "--step", "7", command="replay")
    assert f"loss and gradient are finite; losses: info_nce {run.losses()[5]:.4f}" in ordinary
    assert {file: file.read_bytes() for file in run.run_dir.rglob("*") if file.is_file()} == before
