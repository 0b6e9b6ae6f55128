"""Damaged sources of every format: rows and bad records, or one error that names a file; nothing else, nowhere else."""

import base64
import csv
import io
import json
import pickle
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet

from accel_train.data.readers import (
    chinese_clip_lmdb,
    chinese_clip_tsv,
    csv_table,
    hf_datasets,
    jsonl,
    labelled_texts,
    ratings,
    spoken_images,
    webdataset,
)
from accel_train.data.readers import parquet as parquet_reader
from accel_train.data.readers.labelled_texts import TextColumns, read_mapping
from accel_train.data.readers.ratings import RatingColumns
from accel_train.data.readers.records import BadRecord, Columns, ImageRecord
from accel_train.errors import UserError
from tests import fuzzing
from tests.fuzzing import altered, anything, damaged

FUZZ = settings(fuzzing.FUZZ, max_examples=120)

DEEP = b"[" * 100_000


def png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (2, 2), (200, 30, 30)).save(stream, "PNG")
    return stream.getvalue()


IN_BASE64 = base64.b64encode(png()).decode()
ROW = {"image": "a.png", "text": "词", "image_id": 1, "text_id": 2}
RATING = {"image": "a.png", "prompt": "词", "quality": 2.5, "consistency": "3"}
SPOKEN = {"image_id": 1, "audio": "a.wav", "text": "blue"}


def table(rows: list[dict[str, Any]]) -> bytes:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().encode()


def lines(*rows: Any) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def shard() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in (("a.png", png()), ("a.txt", b"cat"), ("b.png", png()), ("b.json", b'{"text": "dog"}')):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def arrow(kind: str) -> bytes:
    rows = pa.table({"image": [png()] * 3, "text": ["a", "词", "b"], "text_id": [1, 2, 3]})
    stream = io.BytesIO()
    if kind == "parquet":
        parquet.write_table(rows, stream)
    else:
        with (pa.ipc.new_file if kind == "file" else pa.ipc.new_stream)(stream, rows.schema) as file:
            file.write_table(rows)
    return stream.getvalue()


SOURCES: dict[str, tuple[str, bytes]] = {
    "csv": ("train.csv", table([ROW, ROW | {"image": IN_BASE64}])),
    "jsonl": ("train.jsonl", lines(ROW, ROW | {"image": IN_BASE64, "text": ["a", "b"]})),
    "parquet": ("train.parquet", arrow("parquet")),
    "arrow file": ("train.arrow", arrow("file")),
    "arrow stream": ("train.arrow", arrow("stream")),
    "tar": ("train.tar", shard()),
    "tsv": ("train_imgs.tsv", f"1\t{IN_BASE64}\n2\t{IN_BASE64}\n".encode()),
    "tsv texts": ("train_texts.jsonl", lines({"text_id": 1, "text": "词", "image_ids": [1, 2]})),
    "ratings csv": ("ratings.csv", table([RATING])),
    "ratings jsonl": ("ratings.jsonl", lines(RATING)),
    "label lines": ("train.txt", "games ||| 词\nnews ||| b\n".encode()),
    "labelled jsonl": ("train.jsonl", lines({"label": 1, "text": "词"})),
    "spoken": ("train.jsonl", lines(SPOKEN)),
}


def read(kind: str, path: Path) -> Iterator[Any]:
    if kind == "csv":
        return csv_table.read([path], Columns())
    if kind == "jsonl":
        return jsonl.read([path], Columns())
    if kind.startswith("ratings"):
        return ratings.read([path], RatingColumns())
    if kind == "label lines":
        return labelled_texts.read_lines([path], TextColumns())
    if kind == "labelled jsonl":
        return labelled_texts.read_rows([path], TextColumns())
    if kind == "spoken":
        return spoken_images.read([path], ("text",))
    if kind == "tar":
        return webdataset.read([path], Columns())
    if kind.startswith("tsv"):
        files = [path.parent / "train_imgs.tsv", path.parent / "train_texts.jsonl"]
        for file in files:
            file.touch()
        return chinese_clip_tsv.read(files, Columns())
    return parquet_reader.read([path], Columns())


def check(kind: str, path: Path) -> None:
    """Reads all of it, as `import` does."""
    try:
        for record in read(kind, path):
            if isinstance(record, BadRecord):
                assert path.parent.name in record.where and record.reason
            if isinstance(record, ImageRecord):
                assert record.image_id and isinstance(record.image, bytes)
    except UserError as error:
        assert str(path.parent) in str(error)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    return tmp_path


@pytest.mark.parametrize("kind", SOURCES)
def test_damaged_files(kind: str, source: Path) -> None:
    name, content = SOURCES[kind]

    @FUZZ
    @given(damaged(content))
    def fuzz(content: bytes) -> None:
        (source / name).write_bytes(content)
        check(kind, source / name)

    fuzz()
    assert {path.name for path in source.iterdir()} <= {"a.png", "a.wav", name, "train_imgs.tsv", "train_texts.jsonl"}


@pytest.mark.parametrize("kind", ["jsonl", "tsv texts", "ratings jsonl", "labelled jsonl", "spoken"])
def test_values_of_any_kind(kind: str, source: Path) -> None:
    name, content = SOURCES[kind]
    row = json.loads(content.splitlines()[0])

    @FUZZ
    @given(altered(row) | anything)
    def fuzz(value: Any) -> None:
        (source / name).write_bytes(content + json.dumps(value).encode() + b"\n")
        check(kind, source / name)

    fuzz()


@pytest.mark.parametrize("kind", ["jsonl", "tsv texts", "ratings jsonl", "labelled jsonl", "spoken"])
def test_json_without_end(kind: str, source: Path) -> None:
    name, content = SOURCES[kind]
    (source / name).write_bytes(content + DEEP + b"\n")
    bad = [record for record in read(kind, source / name) if isinstance(record, BadRecord)]
    assert "nested too deeply" in bad[-1].reason


@FUZZ
@given(altered({"_data_files": [{"filename": "data-0.arrow"}]}))
def test_the_state_of_a_saved_dataset(tmp_path: Path, state: Any) -> None:
    (tmp_path / "dataset_info.json").write_text("{}")
    (tmp_path / "state.json").write_text(json.dumps(state))
    try:
        files = hf_datasets.find_splits(tmp_path)["train"]
        assert all(file.parent == tmp_path for file in files)
        list(hf_datasets.read(files, Columns()))
    except UserError as error:
        assert str(tmp_path) in str(error)


@FUZZ
@given(altered({"features": {"label": {"names": ["a", "b"]}}}), altered({"0": "a", "1": "b"}), st.booleans())
def test_names_of_labels(tmp_path: Path, info: Any, mapping: Any, has_mapping: bool) -> None:
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    (tmp_path / "label-mapping.json").unlink(missing_ok=True)
    if has_mapping:
        (tmp_path / "label-mapping.json").write_text(json.dumps(mapping))
    try:
        names = read_mapping(tmp_path, [tmp_path / "data.arrow"])
        assert names is None or all(isinstance(name, str) for pair in names.items() for name in pair)
    except UserError as error:
        assert str(tmp_path) in str(error)


@FUZZ
@given(st.sampled_from(range(6)).flatmap(lambda protocol: damaged(pickle.dumps((3, "4", "词"), protocol))))
def test_pickled_records(content: bytes) -> None:
    found = chinese_clip_lmdb._pair("here", content)
    assert isinstance(found, BadRecord) or (isinstance(found.text, str) and isinstance(found.text_id, str))


@pytest.mark.parametrize("count", [b"1000000000000", b"9" * 5000, "\u0663".encode()])
def test_a_count_that_nobody_could_wait_for(count: bytes, tmp_path: Path) -> None:
    lmdb = pytest.importorskip("lmdb")
    for name, key in (("imgs", b"num_images"), ("pairs", b"num_samples")):
        (tmp_path / name).mkdir()
        environment = lmdb.open(str(tmp_path / name), map_size=2**20)
        with environment, environment.begin(write=True) as transaction:
            transaction.put(key, count)
    with pytest.raises(UserError, match=r"imgs: key num_images (says 1,000,000,000,000 records, and there are 0|is b)"):
        list(chinese_clip_lmdb.read([tmp_path / "imgs", tmp_path / "pairs"], Columns()))
