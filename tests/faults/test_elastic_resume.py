"""Promise 3 over other ranks and engines: the same global batches, and losses that differ by rounding alone."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

LOSS_TOLERANCE = 1e-5

# Where each part of the run is trained, and the step after which it is asked to stop.
DOWN_TO_ONE_RANK_AND_UP = [("ddp", 2, 3), ("ddp", 1, 6), ("fsdp2", 1, 9), ("zero2", 1, 12), ("ddp", 2, 16)]
ONE_ENGINE_AFTER_THE_OTHER = [
    ("ddp", 2, 2),
    ("zero2", 2, 4),
    ("fsdp2", 2, 6),
    ("ddp", 1, 8),
    ("zero3", 2, 10),
    ("zero1", 2, 12),
    ("zero3", 1, 14),
    ("ddp", 2, 16),
]


def samples_by_step(*files: Path) -> dict[int, list[int]]:
    """Sample ids of every global batch, in the order of their positions."""
    pieces: dict[int, dict[int, list[int]]] = {}
    for file in files:
        for line in file.read_text().splitlines():
            step, position, *ids = map(int, line.split())
            assert position not in pieces.setdefault(step, {}), f"step {step} was trained twice"
            pieces[step][position] = ids
    return {step: [id for position in sorted(held) for id in held[position]] for step, held in pieces.items()}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("parts", [DOWN_TO_ONE_RANK_AND_UP, ONE_ENGINE_AFTER_THE_OTHER], ids=["ranks", "engines"])
def test_a_run_goes_on_elsewhere_with_the_same_batches_and_losses(
    experiment: Callable[..., Any], never_killed: Callable[[str, int], Any], parts: list[tuple[str, int, int]]
) -> None:
    reference = never_killed("ddp", 2)
    moved = experiment()
    records = []
    for engine, ranks, until in parts:
        records.append(moved.folder / f"{len(records)}.txt")
        options = {"ranks": ranks, "record_samples": records[-1]}
        if until == 16:
            moved.finish(f"engine={engine}", **options)
            break
        until = max(until, moved.step() + 1)
        running = moved.start(f"engine={engine}", **options, step_seconds=0.05)
        moved.wait_for(lambda until=until: moved.step() >= until, running)
        running.signal(signal.SIGUSR1, ranks - 1)
        assert running.wait() == [75] * ranks, running.output
        assert until <= moved.state()["step"] < 16
        assert (moved.state()["engine"], moved.state()["world_size"]) == (engine, ranks)

    assert samples_by_step(*records) == samples_by_step(reference.folder / "samples.txt")
    assert all(len(set(batch)) == 8 for batch in samples_by_step(*records).values())
    assert len(moved.losses()) == len(reference.losses()) == 16
    assert moved.losses() == pytest.approx(reference.losses(), abs=LOSS_TOLERANCE, rel=0)
    for ours, theirs in zip(moved.metrics(), reference.metrics(), strict=True):
        assert ours.pop("split") == theirs.pop("split")
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4)
    assert moved.state()["samples"] == reference.state()["samples"] == 128
