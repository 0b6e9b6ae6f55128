"""One rank's file: what safetensors reads from it, and that its hash is the file's."""

import errno
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import accel_train.checkpoint.pieces
from accel_train.checkpoint.background import HostCopy
from accel_train.checkpoint.files import record_of
from accel_train.checkpoint.pieces import DTYPES, Pieces, pieces_of, write_pieces
from accel_train.engine.shards import Shard


def some_pieces(sizes: list[tuple[int, torch.dtype]]) -> Pieces:
    shards = [
        Shard(f"名 {index}", (size,), 0, (torch.arange(size) % 2).to(dtype))
        for index, (size, dtype) in enumerate(sizes)
    ]
    return pieces_of(3, shards, {})


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(0, 70), st.sampled_from(list(DTYPES))), max_size=6),
    chunk=st.sampled_from([1, 7, 64, 8 * 2**20]),
    copied=st.booleans(),
)
def test_safetensors_reads_what_was_written(sizes: list[tuple[int, torch.dtype]], chunk: int, copied: bool) -> None:
    pieces = some_pieces(sizes)
    if copied:
        host_copy = HostCopy(torch.device("cpu"))
        host_copy.begin(pieces)
        host_copy.finish()
        pieces = host_copy.pieces
    with TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(accel_train.checkpoint.pieces, "CHUNK", chunk)
        record = write_pieces(Path(name), pieces)
        path = Path(name) / "rank_00003.safetensors"
        assert record == record_of(path)
        assert record.xxh3 == xxhash.xxh3_128_hexdigest(path.read_bytes())
        found = load_file(path)
        assert found.keys() == pieces.tensors.keys()
        for key, tensor in pieces.tensors.items():
            assert found[key].dtype == tensor.dtype
            assert torch.equal(found[key], tensor)


def test_a_copy_is_of_its_own_and_follows_when_sizes_change() -> None:
    host_copy = HostCopy(torch.device("cpu"))
    for size in (4, 9, 2):
        pieces = some_pieces([(size, torch.float32), (size, torch.bfloat16), (1, torch.int64)])
        host_copy.begin(pieces)
        host_copy.finish()
        before = {key: tensor.clone() for key, tensor in pieces.tensors.items()}
        for tensor in pieces.tensors.values():
            tensor.fill_(7)
        assert host_copy.pieces.index == pieces.index
        assert all(torch.equal(host_copy.pieces.tensors[key], tensor) for key, tensor in before.items())


def test_a_tensor_that_is_no_row_in_memory_is_written_by_its_values(tmp_path: Path) -> None:
    column = torch.arange(12.0).view(4, 3)[:, 1]
    write_pieces(tmp_path, pieces_of(0, [Shard("a", (4,), 0, column)], {}))
    assert load_file(tmp_path / "rank_00000.safetensors")["weight|a|0"].tolist() == [1, 4, 7, 10]


def test_an_error_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere/rank_00003\.safetensors"):
        write_pieces(tmp_path / "nowhere", some_pieces([]))
    (tmp_path / "rank_00003.safetensors").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device: '.*/rank_00003\.safetensors'"):
        write_pieces(tmp_path, some_pieces([(9, torch.float32)]))


def test_what_the_disk_says_of_an_early_part_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system tells once that data did not reach the disk; the last sync would find nothing wrong."""

    def fail(_descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fdatasync", fail)
    with pytest.raises(OSError, match=r"Input/output error: '.*/rank_00003\.safetensors'"):
        write_pieces(tmp_path, some_pieces([(9, torch.float32)]))
