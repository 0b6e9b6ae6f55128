"""The model of larger clusters, at points that can be worked out by hand."""

from pathlib import Path

import pytest
import torch

from accel_train.config.load import load_config
from accel_train.optim.param_groups import plan_groups
from accel_train.tasks.build import build_task
from accel_train.tools.dry_run.step import Split
from accel_train.tools.plan.pictures import draw_scaling
from accel_train.tools.plan.scale import (
    ENGINES,
    PARTS,
    Links,
    Scaling,
    all_reduce_seconds,
    collective_seconds,
    given_rates,
    scaling,
)
from accel_train.tools.plan.traffic import Collective

SMALL = Path(__file__).parents[3] / "configs" / "small"
LINKS = Links(intra_node=100e9, inter_node=50e9, latency=10e-6, gpus_per_node=8)
FREE = Links(intra_node=1e30, inter_node=1e30, latency=0.0, gpus_per_node=8)


def scaled(name: str, links: Links, *overrides: str, micro_batches: int = 1) -> Scaling:
    config = load_config(SMALL / name, list(overrides))
    task = build_task(config)
    with torch.device("meta"):
        model = task.build_model()
    split = Split("ddp", 1, config.data.micro_batch_size, micro_batches, activation_checkpointing=False)
    return scaling(model, plan_groups(model, config.optimizer), task, split, given_rates(1e12, 1e11), links)


def test_all_reduce_by_ring_and_tree() -> None:
    large = all_reduce_seconds(1e9, 8, LINKS)
    assert large == (pytest.approx(2 * 7 / 8 * 1e9 / 100e9 + 14 * 10e-6), "ring")
    seconds, algorithm = all_reduce_seconds(4e3, 1024, LINKS)
    assert algorithm == "tree"  # 14 hops in the node and 14 between the 128 nodes
    assert seconds == pytest.approx(28 * 10e-6 + 2 * 4e3 / 50e9)
    assert all_reduce_seconds(1e9, 16, LINKS)[0] == pytest.approx(2 * 15 * (10e-6 + 1e9 / 16 / 50e9))


def test_all_gather_moves_half_of_an_all_reduce() -> None:
    gather = Collective("weights", "all_gather", 10**9, 1)
    assert collective_seconds(gather, 8, LINKS) == pytest.approx(all_reduce_seconds(1e9, 8, LINKS)[0] / 2)


def test_links_without_cost_leave_the_growth_of_the_loss() -> None:
    """Each rank's rows are compared with those of all: its part of the loss grows with the number of GPUs."""
    found = scaled("chinese_clip.yaml", FREE)
    for engine in ENGINES:
        first, second, *_, last = found.points[engine]
        assert (first.num_gpus, last.num_gpus, first.efficiency) == (1, 1024, 1.0)
        assert second.parts["compute"] == first.parts["compute"]
        growth = second.parts["loss"] - first.parts["loss"]
        assert last.parts["loss"] == pytest.approx(first.parts["loss"] + 1023 * growth)
        assert growth > 0
        assert sum(last.parts[part] for part in ("gradients", "weights", "features", "agreement")) == pytest.approx(0)
    assert found.bottleneck("ddp") is not None and found.bottleneck("ddp")[1] == "loss"  # type: ignore[index]


def test_gradients_are_hidden_behind_the_backward_pass_under_ddp() -> None:
    """With fast links nothing of them is seen; under ZeRO-1, which reduces afterwards, all of it."""
    fast = Links(intra_node=100e9, inter_node=100e9, latency=1e-9, gpus_per_node=8)
    found = scaled("chinese_clip.yaml", fast)
    assert found.points["ddp"][3].parts["gradients"] == 0
    zero1 = found.points["zero1"][3].parts
    assert zero1["gradients"] == pytest.approx(2 * zero1["weights"], rel=0.01)


def test_slow_links_are_named(tmp_path: Path) -> None:
    slow = Links(intra_node=100e9, inter_node=0.1e9, latency=1e-6, gpus_per_node=8)
    found = scaled("chinese_clip.yaml", slow)
    first = found.bottleneck("ddp")
    assert first is not None and first == (16, "gradients")
    assert all(set(point.parts) == set(PARTS) for point in found.points["fsdp2"])
    draw_scaling(found, "ddp", "chinese_clip", str(tmp_path / "scaling.png"))
    assert (tmp_path / "scaling.png").stat().st_size > 10_000


def test_accumulation_makes_fsdp2_gather_again_and_ddp_not() -> None:
    links = Links(intra_node=1e9, inter_node=1e9, latency=1e-9, gpus_per_node=8)
    once, thrice = (scaled("chinese_clip.yaml", links, micro_batches=num) for num in (1, 4))
    for found in (once, thrice):
        assert found.points["ddp"][2].parts["weights"] == 0
    assert thrice.points["fsdp2"][2].seconds > once.points["fsdp2"][2].seconds
