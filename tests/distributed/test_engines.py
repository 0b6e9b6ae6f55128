"""The engine that was asked for is really on: a "ZeRO run" that fell back to DDP would pass every other test here."""

import pytest

from tests.distributed.conftest import Observed
from tests.distributed.scenarios import ENGINES, WHOLE_ENGINES, runs_of

MOMENTUM_RUN = "evaluated@2"
WRAPPERS = {"ddp": "DistributedDataParallel", "fsdp2": "FSDPContrastiveChineseCLIP"}
OPTIMIZERS = {
    "ddp": "SGD",
    "fsdp2": "SGD",
    "zero1": "DeepSpeedZeroOptimizer",
    "zero2": "DeepSpeedZeroOptimizer",
    "zero3": "DeepSpeedZeroOptimizer_Stage3",
}
PADDING = 1.02
"""A rank may hold a little more than its share, because parts are padded to equal length."""


@pytest.mark.parametrize("engine", ENGINES)
def test_wrapper_and_stage_on_every_rank(engine: str, observed: Observed) -> None:
    name, _, offload = engine.partition("_")
    stage = int(name[-1]) if name.startswith("zero") else None
    for signs in observed(engine, 2, MOMENTUM_RUN).found["signs"]:
        assert signs["wrapper"] == WRAPPERS.get(engine, "DeepSpeedEngine")
        assert signs["optimizer"] == OPTIMIZERS[name]
        assert signs["zero_stage"] == stage
        assert signs["offload"] == bool(offload)
        assert signs["all_dtensors"] == (engine == "fsdp2")
        assert signs["world_size"] == 2


@pytest.mark.parametrize("engine", ENGINES)
def test_each_rank_holds_its_share(engine: str, observed: Observed) -> None:
    found = observed(engine, 2, MOMENTUM_RUN).found
    whole = sum(weight.numel() for weight in found["weights"].values())
    shares = {"weight_elements": engine.startswith(("zero3", "fsdp2")), "state_elements": engine != "ddp"}
    for kind, is_shared in shares.items():
        held = [signs[kind] for signs in found["signs"]]
        assert sum(held) >= whole
        assert max(held) <= (whole / 2 * PADDING if is_shared else whole)


@pytest.mark.parametrize("engine", ["zero3", "zero3_offload"])
def test_zero3_gathers_weights_only_while_they_are_used(engine: str, observed: Observed) -> None:
    for signs in observed(engine, 2, "info_nce@2").found["signs"]:
        assert signs["gathered_elements"] == 0


@pytest.mark.parametrize("engine", WHOLE_ENGINES)
def test_one_process(engine: str, observed: Observed) -> None:
    (signs,) = observed(engine, 1, "info_nce@4").found["signs"]
    bare = {"ddp": "ContrastiveChineseCLIP"}
    assert signs["wrapper"] == (bare | {"fsdp2": WRAPPERS["fsdp2"]}).get(engine, "DeepSpeedEngine")
    assert signs["world_size"] == 1


@pytest.mark.parametrize("engine", ENGINES)
def test_all_ranks_end_with_the_same_weights(engine: str, observed: Observed) -> None:
    for run in runs_of(engine, 2):
        assert observed(engine, 2, run).found["equal_on_all_ranks"], run
