"""A checkpoint with a fault anywhere is found out, or gives the very same values; never others."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from torch import Tensor

from accel_train.checkpoint import files
from accel_train.checkpoint.files import (
    BUFFER,
    FORMAT,
    INDEX_FILE,
    STATE_FILE,
    WEIGHT,
    DamagedCheckpoint,
    Reader,
    check_files,
    read_state,
    record_of,
    write_json,
    write_state,
)
from accel_train.checkpoint.state import TrainState, state_of
from accel_train.engine.shards import Shard
from tests.checkpoint.test_files import write
from tests.fuzzing import FUZZ, altered, damaged


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Two ranks' files, a buffer, a whole training state."""
    values = torch.arange(12.0)
    shards = [
        [Shard("a", (3, 4), 0, values[:5], {"exp_avg": -values[:5]})],
        [Shard("a", (3, 4), 5, values[5:], {"exp_avg": -values[5:]}), Shard("b", (2,), 0, values[:2], {})],
    ]
    write(tmp_path, shards, {"count": torch.tensor(3)})
    state = read_state(tmp_path)
    whole = TrainState(step=7, best_score=0.25, first_scores={"recall": 0.125}, losses=[[1.5, float("nan")]])
    write_state(tmp_path, {"format": FORMAT, **asdict(whole), "files": state["files"]})
    return tmp_path


def read(folder: Path) -> tuple[dict[str, Tensor], str]:
    """Weights, buffers and optimizer state, and the training state in words."""
    state = read_state(folder)
    check_files(folder, state)
    reader = Reader(folder)
    found = {f"{kind}|{name}": reader.read(kind, name) for kind, named in reader.index.items() for name in named}
    return found, repr(state_of(state))


def same(one: tuple[dict[str, Tensor], str], other: tuple[dict[str, Tensor], str]) -> bool:
    return (
        one[0].keys() == other[0].keys()
        and all(torch.equal(value, other[0][name]) for name, value in one[0].items())
        and one[1] == other[1]
    )


@pytest.mark.slow
def test_a_flip_of_every_single_byte(checkpoint: Path) -> None:
    before = read(checkpoint)
    assert set(before[0]) == {"weight|a", "weight|b", "exp_avg|a", "buffer|count"} and WEIGHT != BUFFER
    found_out = 0
    for path in sorted(checkpoint.iterdir()):
        content = path.read_bytes()
        for place in range(len(content)):
            changed = bytearray(content)
            changed[place] ^= 1 << place % 8
            path.write_bytes(changed)
            try:
                # Blanks between the values of state.json may become others.
                assert same(read(checkpoint), before), f"{path.name}: byte {place}"
            except DamagedCheckpoint:
                found_out += 1
        path.write_bytes(content)
    assert found_out > 1500
    assert same(read(checkpoint), before)


@pytest.mark.parametrize("name", [STATE_FILE, INDEX_FILE, "rank_00000.safetensors"])
def test_any_damage(name: str, checkpoint: Path) -> None:
    before = read(checkpoint)

    @FUZZ
    @given(damaged((checkpoint / name).read_bytes()))
    def check(content: bytes) -> None:
        (checkpoint / name).unlink()
        (checkpoint / name).write_bytes(content)
        try:
            assert same(read(checkpoint), before)
        except DamagedCheckpoint as error:
            assert str(checkpoint) in str(error)

    check()


def seal(folder: Path) -> None:
    """Makes all digests right, as someone who means harm would."""
    state = json.loads((folder / STATE_FILE).read_text())
    state.pop(files.SEAL)
    state["files"] = [asdict(record_of(path)) for path in sorted(folder.iterdir()) if path.name != STATE_FILE]
    write_state(folder, state)


@pytest.mark.slow
def test_an_index_that_someone_made_up(checkpoint: Path) -> None:
    index = json.loads((checkpoint / INDEX_FILE).read_text())

    @FUZZ
    @given(altered(index))
    def check(value: Any) -> None:
        (checkpoint / INDEX_FILE).write_text(json.dumps(value))
        seal(checkpoint)
        try:
            found, _ = read(checkpoint)
        except DamagedCheckpoint as error:
            assert str(checkpoint) in str(error)
        else:
            assert all(value.numel() <= 12 for value in found.values())

    check()


def test_a_state_that_someone_made_up(checkpoint: Path) -> None:
    state = {
        name: value for name, value in json.loads((checkpoint / STATE_FILE).read_text()).items() if name != files.SEAL
    }

    @FUZZ
    @given(altered(state))
    def check(value: Any) -> None:
        if isinstance(value, dict):
            write_state(checkpoint, value)
        else:
            write_json(checkpoint / STATE_FILE, value)
        try:
            saved = read_state(checkpoint)
            check_files(checkpoint, saved)
        except DamagedCheckpoint as error:
            assert str(checkpoint) in str(error)
        else:
            assert isinstance(saved["step"], int)

    check()


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "..", "", "a/b", "a\0b"])
def test_no_file_outside_is_read(name: str, checkpoint: Path) -> None:
    state = json.loads((checkpoint / STATE_FILE).read_text())
    state.pop(files.SEAL)
    state["files"][1]["name"] = name
    write_state(checkpoint, state)
    with pytest.raises(DamagedCheckpoint, match="the list of the files beside it"):
        read_state(checkpoint)
    index = json.loads((checkpoint / INDEX_FILE).read_text())
    index["weight"]["a"]["pieces"][0][0] = name
    write_json(checkpoint / INDEX_FILE, index)
    with pytest.raises(DamagedCheckpoint, match="not an index of pieces in this folder"):
        Reader(checkpoint)


def test_memory_is_not_asked_for_before_the_pieces_are_counted(checkpoint: Path) -> None:
    index = json.loads((checkpoint / INDEX_FILE).read_text())
    index["weight"]["a"]["shape"] = [2**40, 4]
    write_json(checkpoint / INDEX_FILE, index)
    with pytest.raises(DamagedCheckpoint, match="weight of a is not complete"):
        Reader(checkpoint).read(WEIGHT, "a")
