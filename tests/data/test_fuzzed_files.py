"""Damaged data set folders, feature files, recordings and tokenizers: read as they were written, or one error."""

import io
import json
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings

from accel_train.data.arrow_writer import SplitWriter
from accel_train.data.feature_file import FeatureFile, read_features, write_features
from accel_train.data.labelled_split import open_labelled_split
from accel_train.data.splits import open_split
from accel_train.data.text import open_tokenizer, save_tokenizer
from accel_train.data.wav import HIGHEST_RATE, LOWEST_RATE, UnreadableAudio, read_wav, resample
from accel_train.errors import UserError
from tests import fuzzing, labelled
from tests.fuzzing import altered, damaged

FUZZ = settings(fuzzing.FUZZ, max_examples=120)

TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "##b", "词"]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Two images, two captions, three pairs."""
    folder = tmp_path / "dataset"
    writer = SplitWriter(folder / "train")
    rows = [writer.add_image(f"image{number}", b"x" * (10 + number)) for number in range(2)]
    writer.add_text("0", "一个词", rows)
    writer.add_text("1", "b", rows[:1])
    description = {"format_version": 1, "splits": {"train": writer.close()}}
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def read_all(dataset: Path) -> list[tuple[Any, Any]]:
    split = open_split(str(dataset), "train")
    pairs = split.matches().tolist()
    return [(split.images.value("image", image), split.texts.value("text", text)) for image, text in pairs]


@pytest.mark.parametrize("table", ["images", "texts", "pairs"])
def test_damaged_tables(table: str, dataset: Path) -> None:
    path = dataset / "train" / f"{table}.arrow"

    @FUZZ
    @given(damaged(path.read_bytes()))
    def check(content: bytes) -> None:
        path.unlink()  # an earlier one may still be mapped
        path.write_bytes(content)
        try:
            rows = read_all(dataset)
        except UserError as error:
            assert str(dataset) in str(error)
        else:
            assert len(rows) == 3
            assert all(isinstance(image, bytes) and isinstance(text, str) for image, text in rows)

    check()


def test_offsets_that_lead_out_of_a_file(dataset: Path) -> None:
    path = dataset / "train" / "texts.arrow"
    content = path.read_bytes()
    offsets = np.array([0, 9, 10], np.int32).tobytes()
    assert content.count(offsets) >= 1
    path.unlink()
    path.write_bytes(content.replace(offsets, np.array([0, 2**30, 2**30 + 1], np.int32).tobytes()))
    with pytest.raises(UserError, match=r"texts\.arrow: (text|text_id) is damaged"):
        open_split(str(dataset), "train")


@pytest.mark.parametrize(("image", "text"), [(2, 0), (-1, 0), (0, 2), (2**62, 0)])
def test_pairs_of_rows_that_are_not_there(image: int, text: int, dataset: Path) -> None:
    path = dataset / "train" / "pairs.arrow"
    table = pa.table({"image_row": [0, image, 0], "text_row": [0, text, 0]})
    with pa.ipc.new_file(str(path), table.schema) as file:
        file.write_table(table)
    with pytest.raises(UserError, match=r"pairs\.arrow: (image|text)_row runs from .*, and there are 2 rows"):
        open_split(str(dataset), "train")


def test_values_that_lack(dataset: Path) -> None:
    path = dataset / "train" / "pairs.arrow"
    table = pa.table({"image_row": pa.array([0, None, 0], pa.int64()), "text_row": [0, 0, 1]})
    with pa.ipc.new_file(str(path), table.schema) as file:
        file.write_table(table)
    with pytest.raises(UserError, match=r"image_row lacks 1 values"):
        open_split(str(dataset), "train")


def test_labels_that_no_class_has(tmp_path: Path) -> None:
    folder = labelled.write_dataset(tmp_path / "data")
    path = folder / "dataset.json"
    description = json.loads(path.read_text())
    path.write_text(json.dumps(description | {"labels": [*description["labels"][:1], "x"]}))
    if len(description["labels"]) == 2:
        pytest.skip("both labels are still there")
    with pytest.raises(UserError, match=r"label runs from 0 to .*, and there are 2 labels"):
        open_labelled_split(str(folder), "train")


def test_an_altered_description(dataset: Path) -> None:
    path = dataset / "dataset.json"
    before, description = read_all(dataset), json.loads(path.read_text())

    @FUZZ
    @given(altered(description))
    def check(value: Any) -> None:
        path.write_text(json.dumps(value))
        try:
            assert read_all(dataset) == before
        except UserError as error:
            assert str(dataset) in str(error)

    check()


@pytest.mark.parametrize("ending", ["safetensors", "parquet"])
def test_damaged_feature_files(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"features.{ending}"
    features = torch.nn.functional.normalize(torch.arange(6.0).reshape(2, 3) + 1)
    write_features(path, FeatureFile(features, None, "print", "model", ["a", "b"], logit_scale=2.0))

    @FUZZ
    @given(damaged(path.read_bytes()))
    def check(content: bytes) -> None:
        path.unlink()
        path.write_bytes(content)
        try:
            found = read_features(path)
        except UserError as error:
            assert str(path) in str(error)
        else:
            assert found.image_features is not None or found.text_features is not None
            assert isinstance(found.source, str) and isinstance(found.logit_scale, float | int | None)

    check()


def recording(rate: int) -> bytes:
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.arange(400, dtype="<i2").tobytes())
    return stream.getvalue()


@FUZZ
@given(damaged(recording(8000)))
def test_damaged_recordings(content: bytes) -> None:
    try:
        samples, rate = read_wav(content)
    except UnreadableAudio as error:
        assert str(error)
    else:
        assert LOWEST_RATE <= rate <= HIGHEST_RATE and samples.ndim == 1 and len(samples) <= len(content)
        assert len(resample(samples[:10], rate, 16_000)) <= 10 * 16_000 / LOWEST_RATE + 1


@pytest.mark.parametrize("rate", [0, 1, LOWEST_RATE - 1, HIGHEST_RATE + 1, 2**31 - 1])
def test_rates_that_would_take_all_memory(rate: int) -> None:
    content = bytearray(recording(8000))
    content[24:28] = rate.to_bytes(4, "little")
    with pytest.raises(UnreadableAudio, match=f"at {rate} Hz; rates from 2,000 to 384,000"):
        read_wav(bytes(content))


def tokenizer_check(path: Path, source: Path) -> Callable[[bytes], None]:
    def check(content: bytes) -> None:
        path.write_bytes(content)
        try:
            ids, mask = open_tokenizer(str(source), 8).encode("a 词 b")
        except UserError as error:
            assert source.name in str(error)
        else:
            assert ids.shape == mask.shape == (8,)

    return check


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "vocab.txt"])
def test_damaged_tokenizers(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    save_tokenizer(TOKENS, folder)
    if name == "vocab.txt":
        (folder / "tokenizer.json").unlink()
    check = tokenizer_check(folder / name, folder)
    FUZZ(given(damaged((folder / name).read_bytes()))(check))()


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_altered_tokenizers(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    save_tokenizer(TOKENS, folder)
    check = tokenizer_check(folder / name, folder)
    value = json.loads((folder / name).read_bytes())
    FUZZ(given(altered(value).map(lambda value: json.dumps(value).encode()))(check))()


def test_an_old_tokenizer_folder_brings_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    config = {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}, "tokenizer_class": "Evil", "pad_token": "[PAD]"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "merges.txt").write_text("a b\n")
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'sang')!r}, 'w')\nclass Evil: ...\n")
    with pytest.raises(UserError, match="holds no tokenizer"):
        open_tokenizer(str(tmp_path), 8)
    assert not (tmp_path / "sang").exists()
