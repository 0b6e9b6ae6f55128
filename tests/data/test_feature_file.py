"""Files of features give back what was written, in the same bytes each time, and damage is named."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from accel_train.data.feature_file import FeatureFile, read_features, write_features
from accel_train.errors import UserError


def unit_rows(count: int, width: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.nn.functional.normalize(torch.randn(count, width, generator=generator), dim=1)


def content(**changes: object) -> FeatureFile:
    values = {
        "image_features": unit_rows(5),
        "text_features": unit_rows(7),
        "fingerprint": "abc",
        "source": "runs/模型, best checkpoint (step 3)",
        "image_ids": [f"图{number}" for number in range(5)],
        "text_ids": [f"t{number}" for number in range(7)],
        "dataset": "data, split train",
        "identity": "def",
        "logit_scale": 14.25,
        "weights": "5e",
    }
    return FeatureFile(**(values | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("ending", ["safetensors", "parquet"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"text_features": None, "text_ids": [], "fingerprint": None},
        {"image_features": None, "image_ids": [], "text_features": unit_rows(1), "text_ids": ["only"]},
    ],
    ids=["both", "images", "one text"],
)
def test_what_is_written_is_read(tmp_path: Path, ending: str, changes: dict[str, object]) -> None:
    tmp_path.chmod(0o755)
    path, written = tmp_path / f"features.{ending}", content(**changes)
    write_features(path, written)
    read = read_features(path)
    for kind in ("image", "text"):
        wanted, found = written.features(kind), read.features(kind)
        assert (wanted is None) == (found is None)
        assert wanted is None or (found is not None and torch.equal(found, wanted))
        assert read.ids(kind) == written.ids(kind)
    for name in ("fingerprint", "source", "dataset", "identity", "logit_scale", "weights"):
        assert getattr(read, name) == getattr(written, name)
    assert path.stat().st_mode & 0o044, "others may read what the folder lets them read"


@pytest.mark.parametrize("ending", ["safetensors", "parquet"])
def test_the_same_content_is_the_same_bytes(tmp_path: Path, ending: str) -> None:
    first, second = tmp_path / f"first.{ending}", tmp_path / f"second.{ending}"
    write_features(first, content())
    write_features(second, content())
    assert first.read_bytes() == second.read_bytes()


def test_parquet_is_plain_for_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three columns, images before texts, also when they are written in several pieces."""
    monkeypatch.setattr("accel_train.data.feature_file.ROWS_AT_ONCE", 3)
    path = tmp_path / "features.parquet"
    write_features(path, content())
    rows = pq.read_table(path).to_pylist()
    assert [(row["kind"], row["id"]) for row in rows] == [
        *(("image", f"图{number}") for number in range(5)),
        *(("text", f"t{number}") for number in range(7)),
    ]
    both = torch.cat([unit_rows(5), unit_rows(7)])
    np.testing.assert_array_equal(np.array([row["features"] for row in rows], dtype=np.float32), both.numpy())
    assert torch.equal(read_features(path).features("text"), unit_rows(7))  # type: ignore[arg-type]


def test_files_of_another_kind_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.safetensors: no such file of features"):
        read_features(tmp_path / "none.safetensors")
    with pytest.raises(UserError, match=r"features\.npy: .* ends in \.safetensors or \.parquet"):
        read_features(tmp_path / "features.npy")
    for ending in ("safetensors", "parquet"):
        (tmp_path / f"torn.{ending}").write_bytes(b"not a file")
        with pytest.raises(UserError, match=rf"torn\.{ending}: can't be read as a file of features"):
            read_features(tmp_path / f"torn.{ending}")
    save_file({"weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="its metadata has no 'accel_train'"):
        read_features(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_ids": ["one"]}, r"image_features is \(5, 6\) torch.float32 with 1 ids"),
        ({"text_features": unit_rows(7) / 0}, "text_features holds NaN"),
        ({"text_features": unit_rows(7).double()}, "torch.float64"),
        ({"text_features": unit_rows(7, 4)}, r"features of lengths \[4, 6\]"),
        ({"text_features": None, "image_features": None}, "no features"),
    ],
)
def test_features_that_can_not_be_used_are_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    path = tmp_path / "features.safetensors"
    write_features(path, content(**changes))
    with pytest.raises(UserError, match=message):
        read_features(path)


def test_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "features.safetensors"
    save_file({"image_features": unit_rows(2)}, path, {"accel_train": json.dumps({"format": "accel_train features 9"})})
    with pytest.raises(UserError, match="its format is 'accel_train features 9', and this program reads"):
        read_features(path)
