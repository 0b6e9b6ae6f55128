"""The ways that the benchmark of images compares do the same work."""

from pathlib import Path

import torch

from accel_train.tools.bench.image_rates import (
    BATCH,
    arrow_images,
    batch_of_ours,
    batch_of_torchvision,
    cpu_seconds_in_turns,
    lmdb_images,
    photographs,
    tsv_images,
)


def test_photographs_have_the_size_of_photographs() -> None:
    for width in (336, 500):
        encoded = photographs(width, count=2)
        bits = [8 * len(image) / (width * width * 3 // 4) for image in encoded]
        assert all(1.5 < count < 5 for count in bits), bits
        assert encoded[0] != encoded[1]


def test_every_way_gives_a_batch(tmp_path: Path) -> None:
    encoded = photographs(60, count=3)
    stored = arrow_images(tmp_path, encoded)
    exact, fast = (batch_of_ours(stored, 32, decoding) for decoding in ("exact", "fast"))  # type: ignore[arg-type]
    assert exact.shape == fast.shape == (BATCH, 3, 32, 32) and exact.dtype == torch.uint8
    assert (exact.int() - fast.int()).abs().float().mean() < 2
    for in_place in (tsv_images(tmp_path / "tsv", encoded), lmdb_images(tmp_path / "lmdb", encoded)):
        assert torch.equal(batch_of_ours(in_place, 32, "fast"), fast)
    other = batch_of_torchvision(encoded, 32)
    assert other.shape == fast.shape and other.dtype == torch.float32


def test_cpu_seconds_are_of_each_way_and_round() -> None:
    threads = torch.get_num_threads()
    calls: list[str] = []
    seconds = cpu_seconds_in_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=2)
    assert calls == ["a", "b", "a", "b", "a", "b"]
    assert {name: len(rounds) for name, rounds in seconds.items()} == {"a": 2, "b": 2}
    assert torch.get_num_threads() == threads
