"""Blocks cover every row once whatever the numbers are, and a folder of parts keeps to what it was made for."""

import errno
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from accel_train.errors import UserError
from accel_train.models.weights_digest import digest_of_weights
from accel_train.tools.feature_blocks import MAX_BLOCKS, Block, Part, Parts, cut_into_blocks, on_disk, remove


@given(num_rows=st.integers(1, 20_000), batch_size=st.integers(1, 300))
def test_blocks_are_whole_batches_and_cover_every_row_once(num_rows: int, batch_size: int) -> None:
    blocks = cut_into_blocks("image", num_rows, batch_size)
    batches = [batch for block in blocks for batch in block.batches()]
    assert [row for batch in batches for row in batch] == list(range(num_rows))
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert len(blocks) <= MAX_BLOCKS
    assert len({block.file_name for block in blocks}) == len(blocks)


def test_few_rows_are_cut_as_finely_as_batches_allow() -> None:
    assert len(cut_into_blocks("text", 1000, 10)) == 100


def test_parts_are_joined_in_row_order_without_what_could_not_be_read(tmp_path: Path) -> None:
    parts, blocks = Parts(tmp_path / "parts"), cut_into_blocks("image", 7, 3)
    parts.claim({"weights": "a"})
    features = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
    parts.write(blocks[2], Part(torch.tensor([6]), features[6:], []))
    assert parts.missing(blocks) == blocks[:2]
    parts.write(blocks[0], Part(torch.empty(0, dtype=torch.int64), torch.empty(0, 0), ["a", "b", "c"]))
    parts.write(blocks[1], Part(torch.tensor([3, 5]), features[[3, 5]], ["e"]))
    rows, joined = parts.join(blocks)
    assert rows.tolist() == [3, 5, 6]
    assert torch.equal(joined, features[[3, 5, 6]])
    assert parts.unreadable(blocks) == ["a", "b", "c", "e"]
    parts.claim({"weights": "a"})
    with pytest.raises(UserError, match="other work; different: weights"):
        parts.claim({"weights": "b"})
    remove(parts.folder)
    assert not parts.folder.exists()


def test_a_torn_description_is_named(tmp_path: Path) -> None:
    (tmp_path / "about.json").write_text("{")
    with pytest.raises(UserError, match=r"about\.json: not JSON .* to start afresh"):
        Parts(tmp_path).claim({})


def test_the_digest_knows_every_weight() -> None:
    model = torch.nn.Linear(3, 2)
    before = digest_of_weights(model)
    assert digest_of_weights(model) == before
    with torch.no_grad():
        model.bias[1] += 1e-6
    assert digest_of_weights(model) != before


def test_a_block_names_its_first_row() -> None:
    assert Block("text", 3000, 4000, 10).file_name == "text_000000003000.safetensors"


def test_features_on_disk_have_no_name_and_no_memory(tmp_path: Path) -> None:
    features = on_disk(tmp_path, 300, 7)
    wanted = torch.arange(2100.0).view(300, 7)
    features[:] = wanted
    assert torch.equal(features, wanted)
    assert list(tmp_path.iterdir()) == []
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line]
    assert len(mapped) == 1
    del features
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()
    assert on_disk(tmp_path, 0, 7).shape == (0, 7)


def test_a_disk_that_cannot_hold_the_features_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        on_disk(tmp_path, 3, 4)
    assert list(tmp_path.iterdir()) == []
