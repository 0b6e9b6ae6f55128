"""`verify` on real launches: right steps pass on every engine; faults that are built in are found, and named."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.faults.built_in import outcomes
from tests.faults.conftest import Experiment, ForkServer, base_config

WHAT_IS_SAID = {
    ("ddp", "gathered_without_gradient"): ["gathered without gradient", "image.00", "0.5 × the right length"],
    ("ddp", "local_loss"): ["the loss is", "over a part of the batch", "image.00"],
    ("ddp", "temperature_for_each_micro_batch"): ["is counted once for each micro-batch", "heads"],
    ("ddp", "temperature_for_each_rank"): ["is counted once for each", "heads"],
    ("ddp", "randomness_not_replayed"): ["the random state was not replayed", "text"],
    ("ddp", "divided_by_micro_batches"): ["0.25 × the right length"],
    ("ddp", "nan_on_one_rank"): ["not finite", "image.00"],
    ("ddp", "hooks_skipped"): ["the ranks hold different gradients", "the ranks' models differ"],
    ("ddp", "clipped_by_the_engine"): ["clips the gradient to norm 1.0 by itself", "image.00"],
    ("ddp", "rate_for_each_rank"): ["is multiplied by the number of ranks", "image.00", "2 × the right length"],
    ("ddp", "schedule_for_each_rank"): ["image.00: the learning rate asked for is 0.0002, the engine has 0.0004"],
    ("ddp", "settings_of_the_first_group"): ["image.00.no_decay: weight decay asked for is 0, the engine has 0.01"],
    ("ddp", "frozen_moves"): ["frozen weights moved: text_model.embeddings"],
    ("ddp", "ranks_drift"): ["the ranks' models differ after the update"],
    ("ddp", "samples_twice"): ["did not take the samples of this global batch"],
    ("fsdp2", "gathered_without_gradient"): ["gathered without gradient"],
    ("zero1", "boundary_in_every_micro_batch"): ["the accumulation boundary"],
    ("zero2", "clipped_by_the_engine"): ["clips the gradient to norm 1.0 by itself"],
    ("zero2", "boundary_in_every_micro_batch"): ["the accumulation boundary"],
    ("zero3", "gathered_without_gradient"): ["gathered without gradient"],
}
ENGINES = ["ddp", "fsdp2", "zero1", "zero2", "zero3"]


@pytest.fixture(scope="session")
def verified(server: ForkServer, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """verified(engine, fault, code): what rank 0 prints; the exit code must be that on both ranks.

    One launch of two ranks for each engine, without a fault first.
    """

    @cache
    def launch(engine: str) -> dict[str, tuple[list[int], str]]:
        made = Experiment(server, tmp_path_factory.mktemp(f"verify_{engine}"), base_config(dataset))
        faults = ("", *(fault for of, fault in WHAT_IS_SAID if of == engine))
        ranks = made.start("config.yaml", f"engine={engine}", "--json", command="verify", ranks=2, built_in=faults)
        assert ranks.wait(300) == [0, 0], ranks.output
        assert not made.run_dir.exists()
        return outcomes(made.folder, 2)

    def verify(engine: str, fault: str, code: int) -> str:
        codes, said = launch(engine)[fault]
        assert codes == [code, code], said
        return said

    return verify


@pytest.mark.parametrize("engine", ENGINES)
def test_a_right_step_passes(engine: str, verified: Callable[..., str]) -> None:
    """Dropout, augmentation, frozen layers, layer decay, clipping and accumulation on two ranks."""
    found = json.loads(verified(engine, "nothing", 0))
    assert found["passed"] and not found["problems"]
    assert (found["world_size"], found["num_micro_batches"], found["num_samples"]) == (2, 2, 8)
    assert "own random draws" in found["compared_with"]
    assert all(group["gradient"]["error"] < 1e-5 and group["update"]["error"] < 1e-5 for group in found["groups"])
    assert all(0 < group["update_to_weight"] < 0.1 for group in found["groups"])
    assert found["temperature"]["ratio"] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("engine", "fault"), WHAT_IS_SAID)
def test_a_fault_is_found_and_named(engine: str, fault: str, verified: Callable[..., str]) -> None:
    said = verified(engine, fault, 1)
    assert "Traceback" not in said
    for words in WHAT_IS_SAID[engine, fault]:
        assert words in said, said
