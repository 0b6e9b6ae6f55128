"""The format: whatever is cut in whatever way over whatever files comes back exactly, and any damage is named."""

import io
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor

from accel_train.checkpoint.files import (
    BUFFER,
    FORMAT,
    INDEX_FILE,
    STATE_FILE,
    WEIGHT,
    DamagedCheckpoint,
    Reader,
    check_files,
    joined_index,
    read_state,
    record_of,
    write_json,
    write_state,
)
from accel_train.checkpoint.pieces import pieces_of, write_pieces
from accel_train.engine.shards import Shard

SHAPES = st.lists(st.integers(1, 7), max_size=3).map(tuple) | st.just((0,)) | st.just((3, 0))
DTYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int64])


def random_tensor(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (values * 1000).to(dtype)


def write(folder: Path, per_rank: list[list[Shard]], buffers: dict[str, Tensor] | None = None) -> None:
    """A whole checkpoint folder with a minimal state.json."""
    written = [pieces_of(rank, shards, (buffers or {}) if rank == 0 else {}) for rank, shards in enumerate(per_rank)]
    records = [write_pieces(folder, pieces) for pieces in written]
    write_json(folder / INDEX_FILE, joined_index(pieces.index for pieces in written))
    listed = [asdict(record) for record in [record_of(folder / INDEX_FILE), *records]]
    write_state(folder, {"format": FORMAT, "step": 7, "files": listed})


@st.composite
def layouts(draw: st.DrawFn) -> tuple[dict[str, Tensor], list[list[Shard]]]:
    """Some tensors, cut at any places, the pieces dealt to any files in any order."""
    tensors: dict[str, Tensor] = {}
    per_rank: list[list[Shard]] = [[] for _ in range(draw(st.integers(1, 4)))]
    for number in range(draw(st.integers(1, 4))):
        name = f"block.{number}|weight"
        tensor = random_tensor(draw(SHAPES), draw(DTYPES), number)
        tensors[name] = tensor
        size = tensor.numel()
        cuts = sorted(draw(st.sets(st.integers(1, size - 1), max_size=4))) if size > 1 else []
        flat = tensor.reshape(-1)
        for start, stop in zip([0, *cuts], [*cuts, size], strict=True):
            state = {"exp_avg": -flat[start:stop], "exp_avg_sq": flat[start:stop] * 2}
            shard = Shard(name, tuple(tensor.shape), start, flat[start:stop], state)
            per_rank[draw(st.integers(0, len(per_rank) - 1))].append(shard)
    for shards in per_rank:
        shards[:] = draw(st.permutations(shards))
    return tensors, per_rank


@settings(max_examples=60, deadline=None)
@given(layout=layouts(), data=st.data())
def test_any_layout_comes_back_whole_and_in_any_range(
    layout: tuple[dict[str, Tensor], list[list[Shard]]], data: st.DataObject
) -> None:
    tensors, per_rank = layout
    with TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, per_rank)
        check_files(folder, read_state(folder))
        reader = Reader(folder)
        for name, tensor in tensors.items():
            for kind, expected in ((WEIGHT, tensor), ("exp_avg", -tensor), ("exp_avg_sq", tensor * 2)):
                assert reader.shape(kind, name) == tuple(tensor.shape)
                whole = reader.read(kind, name)
                assert whole.dtype == tensor.dtype
                assert torch.equal(whole, expected)
                start = data.draw(st.integers(0, tensor.numel()))
                stop = data.draw(st.integers(start, tensor.numel()))
                target = torch.full((stop - start + 2,), 77, dtype=tensor.dtype)
                reader.read_into(target[1:-1], kind, name, start)
                assert torch.equal(target[1:-1], expected.reshape(-1)[start:stop])
                assert target[0] == target[-1] == 77, "nothing beside the range is touched"


def test_a_file_is_the_same_bytes_each_time(tmp_path: Path) -> None:
    shards = [Shard("a", (4,), 0, torch.arange(4.0)), Shard("b", (2, 2), 1, torch.ones(3))]
    contents = []
    for attempt in range(2):
        (tmp_path / str(attempt)).mkdir()
        write(tmp_path / str(attempt), [shards])
        contents.append({file.name: file.read_bytes() for file in (tmp_path / str(attempt)).iterdir()})
    assert contents[0] == contents[1]


def test_views_and_gradients_of_storage_are_written_by_value(tmp_path: Path) -> None:
    storage = torch.arange(10.0, requires_grad=True)
    write(tmp_path, [[Shard("a", (4,), 0, storage[2:6]), Shard("b", (4,), 0, storage[4:8])]])
    reader = Reader(tmp_path)
    assert reader.read(WEIGHT, "a").tolist() == [2, 3, 4, 5]
    assert reader.read(WEIGHT, "b").tolist() == [4, 5, 6, 7]


def test_buffers_of_no_dimension_keep_their_shape(tmp_path: Path) -> None:
    write(tmp_path, [[]], {"norm.num_batches_tracked": torch.tensor(5), "norm.mean": torch.ones(2, 3)})
    reader = Reader(tmp_path)
    assert reader.read(BUFFER, "norm.num_batches_tracked").shape == ()
    assert reader.read(BUFFER, "norm.num_batches_tracked") == 5
    assert reader.shape(BUFFER, "norm.mean") == (2, 3)
    assert reader.shape(BUFFER, "absent") is None
    assert reader.shape("absent", "norm.mean") is None


def test_a_range_that_no_piece_holds_is_damage(tmp_path: Path) -> None:
    write(tmp_path, [[Shard("a", (6,), 0, torch.ones(2)), Shard("a", (6,), 4, torch.ones(2))]])
    reader = Reader(tmp_path)
    reader.read_into(torch.empty(2), WEIGHT, "a", 4)
    with pytest.raises(DamagedCheckpoint, match="weight of a is not complete"):
        reader.read_into(torch.empty(3), WEIGHT, "a", 1)


def test_nothing_is_pickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("pickle was used")

    for owner, name in ((pickle, "dump"), (pickle, "load"), (pickle, "loads"), (torch, "save"), (torch, "load")):
        monkeypatch.setattr(owner, name, refuse)
    write(tmp_path, [[Shard("a", (4,), 0, torch.arange(4.0))], []])
    check_files(tmp_path, read_state(tmp_path))
    assert Reader(tmp_path).read(WEIGHT, "a").tolist() == [0, 1, 2, 3]
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == ["index.json", "rank_00000.safetensors", "rank_00001.safetensors", "state.json"]
    with safe_open(tmp_path / "rank_00000.safetensors", framework="pt") as file:
        assert list(file.keys()) == ["weight|a|0"]
    with pytest.raises(pickle.UnpicklingError):
        pickle.Unpickler(io.BytesIO((tmp_path / "rank_00000.safetensors").read_bytes())).load()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)


def remove(path: Path) -> None:
    path.unlink()


def put_a_folder_in_its_place(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [truncate, empty, flip_a_bit, remove, put_a_folder_in_its_place])
@pytest.mark.parametrize("file", ["rank_00000.safetensors", "rank_00001.safetensors", INDEX_FILE])
def test_a_damaged_file_is_named(tmp_path: Path, file: str, damage: Callable[[Path], None]) -> None:
    write(tmp_path, [[Shard("a", (8,), 0, torch.ones(4))], [Shard("a", (8,), 4, torch.ones(4))]])
    damage(tmp_path / file)
    with pytest.raises(DamagedCheckpoint, match=file) as caught:
        check_files(tmp_path, read_state(tmp_path))
    expected = {
        truncate: "bytes instead of",
        empty: "has 0 bytes instead of",
        flip_a_bit: "XXH3 differs",
        remove: "is missing",
        put_a_folder_in_its_place: "is missing",
    }
    assert expected[damage] in str(caught.value)


def test_ranks_share_the_checking(tmp_path: Path) -> None:
    write(tmp_path, [[Shard("a", (4,), 0, torch.ones(4))], [Shard("b", (4,), 0, torch.ones(4))]])
    remove(tmp_path / "rank_00001.safetensors")  # the third file of the record
    state = read_state(tmp_path)
    check_files(tmp_path, state, slice(1, None, 2))
    with pytest.raises(DamagedCheckpoint, match="rank_00001"):
        check_files(tmp_path, state, slice(0, None, 2))


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"null", b"[1]", b'{"format": 0}', b'{"step": 3}', json.dumps({"format": 99}).encode()],
)
def test_a_state_file_that_is_none_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / STATE_FILE).write_bytes(content)
    with pytest.raises(DamagedCheckpoint, match=STATE_FILE):
        read_state(tmp_path)
    (tmp_path / STATE_FILE).unlink()
    with pytest.raises(DamagedCheckpoint, match=STATE_FILE):
        read_state(tmp_path)


@pytest.mark.slow
def test_reading_a_range_takes_the_memory_of_the_range(tmp_path: Path) -> None:
    mebibytes = 160
    size = mebibytes * 2**20 // 4
    write(tmp_path, [[Shard("a", (size,), 0, torch.ones(size))]])
    script = f"""
import sys, torch
from pathlib import Path
from accel_train.checkpoint.files import Reader, check_files, read_state, WEIGHT

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

folder = Path(sys.argv[1])
target = torch.zeros({size} // 40)
before = peak()
check_files(folder, read_state(folder))
Reader(folder).read_into(target, WEIGHT, "a", {size} // 3)
assert target.sum() == len(target)
print((peak() - before) / 1024)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=100, check=True
    )
    assert float(done.stdout) < mebibytes / 8, f"reading {mebibytes / 40} MiB took {done.stdout} MiB"
