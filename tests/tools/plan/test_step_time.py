"""The estimated time of a step, with rates that make the sum plain."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from accel_train.config.load import load_config
from accel_train.errors import UserError
from accel_train.tools.calibration.record import Calibration, Rates, rates_key, this_machine, write_calibration
from accel_train.tools.dry_run.step import DryStep
from accel_train.tools.plan.command import plan
from accel_train.tools.plan.run_plan import RunPlan, make_plan
from accel_train.tools.plan.scale import given_rates
from accel_train.tools.plan.step_time import StepTime, phase_seconds, repeated, step_time, with_data
from accel_train.tools.plan.traffic import traffic

SMALL = str(Path(__file__).parents[3] / "configs" / "small" / "chinese_clip.yaml")
FLOPS = given_rates(1.0, 1e30)
"""A second for each floating-point operation, and nothing for the rest."""
HERE = Calibration({}, {}, {"2": {"all_reduce": [(1.0, 1.0)], "all_gather": [(1.0, 1.0)]}})
"""A second for each byte."""


def planned(*overrides: str, ranks: int = 1) -> RunPlan:
    return make_plan(load_config(SMALL, ["data.global_batch_size=32", *overrides]), world_size=ranks)


def test_backward_costs_twice_the_forward_pass() -> None:
    dry = planned("data.micro_batch_size=32").dry
    phases = phase_seconds(dry, FLOPS)
    images = 32 * (48 // 16) ** 2  # the size `tiny` has patches of 16
    assert phases["backward"] == pytest.approx(2 * phases["forward"], rel=0.15)
    assert phases["forward"] > images * 2 * 3 * (4 * 128**2 + 2 * 128 * 256)


def test_accumulation_encodes_all_micro_batches_but_one_twice() -> None:
    whole = phase_seconds(planned("data.micro_batch_size=32").dry, FLOPS)
    cut = phase_seconds(planned("data.micro_batch_size=4").dry, FLOPS)
    assert cut["forward"] == pytest.approx(whole["forward"] / 8)
    for phase in ("forward, for features", "forward, again"):
        assert cut[phase] == pytest.approx(7 / 8 * whole["forward"])
    assert cut["backward"] == pytest.approx(whole["backward"])
    assert cut["loss"] == pytest.approx(whole["loss"])


def test_flops_of_a_step_are_those_of_all_micro_batches() -> None:
    dry = planned("data.micro_batch_size=4").dry
    found = step_time(dry, HERE, FLOPS, on_gpu=False)
    assert found.flops == pytest.approx(sum(phase_seconds(dry, FLOPS).values()), rel=1e-6)
    assert found.num_operations == sum(repeated(dry).values())
    assert found.parts["communication"] == 0


def test_communication_is_counted_and_on_a_gpu_partly_hidden() -> None:
    dry = planned("data.micro_batch_size=16", ranks=2).dry
    trained = dry.sizes.trained_weights
    features = 32 * dry.row_bytes
    on_cpu = step_time(dry, HERE, FLOPS, on_gpu=False).parts["communication"]
    assert on_cpu == pytest.approx(trained + 2 * features + 4 * 64, rel=0.01)
    on_gpu = step_time(dry, HERE, FLOPS, on_gpu=True).parts["communication"]
    assert on_gpu == pytest.approx(2 * features + 4 * 64, rel=0.01)  # at a FLOP a second, the backward pass hides much


def sigmoid(ranks: int, *overrides: str) -> DryStep:
    """A rank's share is always the same."""
    batch = [f"data.global_batch_size={32 * ranks}", "data.micro_batch_size=16"]
    changes = ["loss.positives=own", *batch, *overrides]
    return make_plan(load_config(SMALL.replace("chinese_clip", "siglip"), changes), world_size=ranks).dry


def test_blocks_that_go_around_the_ranks_are_counted_and_hidden_by_the_loss() -> None:
    """Texts make W - 1 hops, their gradient W, of which the last one finds nothing to hide behind."""
    dry = sigmoid(4)
    assert dry.has_loss and dry.passed_bytes == dry.passed_back_bytes == dry.row_bytes / 2
    block = 32 * dry.passed_bytes
    sent = [(one.kind, one.num_bytes, one.hidden_by) for one in traffic(dry) if one.what == "features"]
    assert sent == [("all_gather", 4 * block, "loss")] * 2 + [("send", block, None)]
    curves = {"all_reduce": [(1.0, 0.0)], "all_gather": [(1.0, 3 / 4)]}  # a second for each byte that a rank sends
    here = Calibration({}, {}, {"4": curves})
    on_cpu = step_time(dry, here, FLOPS, on_gpu=False).parts["communication"]
    assert on_cpu == pytest.approx((3 + 4) * block)
    assert step_time(dry, here, FLOPS, on_gpu=True).parts["communication"] == pytest.approx(block)


def test_a_frozen_text_tower_goes_around_without_a_gradient() -> None:
    dry = sigmoid(2, "optimizer.towers.text.lr=0")
    assert dry.passed_bytes and not dry.passed_back_bytes
    assert [one.kind for one in traffic(dry) if one.what == "features"] == ["all_gather"]


def test_the_sigmoid_loss_of_more_ranks_takes_longer_and_holds_no_more() -> None:
    two, eight = sigmoid(2), sigmoid(8)
    assert phase_seconds(eight, FLOPS)["loss"] == pytest.approx(4 * phase_seconds(two, FLOPS)["loss"])
    assert eight.counted.most["features and loss"] == two.counted.most["features and loss"]


def test_what_was_not_measured_is_named() -> None:
    dry = planned("data.micro_batch_size=8", ranks=4).dry
    with pytest.raises(UserError, match=r"between 4 ranks was measured.*torchrun --nproc-per-node 4"):
        step_time(dry, HERE, FLOPS, on_gpu=False)
    with pytest.raises(UserError, match=r"no time of .* operations was measured"):
        step_time(dry, HERE, Rates({"plain": [(1.0, 1.0)]}, 0.0), on_gpu=False)


def test_waiting_for_data() -> None:
    dry = planned("data.micro_batch_size=16", ranks=2).dry
    step = StepTime({"forward": 1.0}, 0, 0)

    def waits(seconds: float, workers: int, cpus: int | None) -> float:
        return with_data(step, dry, seconds, workers, cpus).parts["waiting for data"]

    assert waits(0.25, 0, None) == 16 * 0.25  # in the training process
    assert waits(0.25, 2, None) == 16 * 0.25 / 2 - 1  # as fast as two workers
    assert waits(0.25, 8, None) == 0  # workers keep up
    assert waits(0.25, 8, 2) == (1 + 16 * 0.25) * 2 / 2 - 1  # two ranks and their workers on two cores


def test_printed_and_as_json(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = load_config(SMALL, [])
    plan(config)
    assert "Not estimated" in (shown := capsys.readouterr().out) and "--calibrate" in " ".join(shown.split())
    rates = replace(given_rates(1e10, 1e10), seconds_per_operation=1e-6)
    write_calibration(Calibration(this_machine(), {rates_key("cpu", ranks=1): rates}))
    plan(config)
    shown = capsys.readouterr().out
    for part in ("Time of a step", "backward", "waiting for data", "an epoch", "samples/s"):
        assert part in shown
    plan(config, as_json=True)
    found = json.loads(capsys.readouterr().out)["step_time"]
    assert found["seconds"] == pytest.approx(sum(found["parts"].values()))


def test_ranks_that_share_a_host_have_rates_of_their_own(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    alone, together = (replace(given_rates(speed, speed), seconds_per_operation=1e-6) for speed in (1e10, 5e9))
    found = {rates_key("cpu", 1, 3): alone, rates_key("cpu", 2, 3): together}
    write_calibration(
        Calibration(this_machine(), found, {"2": {"all_reduce": [(1.0, 1e-9)], "all_gather": [(1.0, 1e-9)]}})
    )
    forward = []
    for ranks in (1, 2):
        batch = ["data.micro_batch_size=16", f"data.global_batch_size={16 * ranks}"]
        plan(load_config(SMALL, ["compute.num_threads=3", *batch]), as_json=True, world_size=ranks)
        forward.append(json.loads(capsys.readouterr().out)["step_time"]["parts"]["forward"])
    assert 1.5 * forward[0] < forward[1] < 2.01 * forward[0]  # as many samples on each, at half the speed
