"""Labelled texts in every format that is read."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from accel_train.data.readers.labelled_texts import (
    FORMATS,
    LabelledText,
    TextColumns,
    find_lines,
    read_lines,
    read_mapping,
    read_rows,
)
from accel_train.data.readers.records import BadRecord
from accel_train.errors import UserError

ROWS = [("0", "a song, of the sea"), ("2", "warm bread"), ("1", "mountain ||| train")]


def write_lines(folder: Path) -> None:
    (folder / "train.txt").write_text("".join(f"{label} ||| {text}\n" for label, text in ROWS))


def write_csv(folder: Path) -> None:
    rows = "".join(f'{label},"{text}"\n' for label, text in ROWS)
    (folder / "train.csv").write_text("label,text\n" + rows)


def write_tsv(folder: Path) -> None:
    (folder / "train.tsv").write_text("sentence\tcategory\n" + "".join(f"{text}\t{label}\n" for label, text in ROWS))


def write_jsonl(folder: Path) -> None:
    lines = [json.dumps({"text": text, "label": int(label)}) for label, text in ROWS]
    (folder / "train.jsonl").write_text("\n".join(lines))


def table() -> pa.Table:
    return pa.table({"label": [int(label) for label, _ in ROWS], "text": [text for _, text in ROWS]})


def write_parquet(folder: Path) -> None:
    parquet.write_table(table(), folder / "train-00000-of-00001.parquet")


def write_hf(folder: Path) -> None:
    with pa.OSFile(str(folder / "data-0.arrow"), "wb") as file, pa.ipc.new_stream(file, table().schema) as stream:
        stream.write_table(table())
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-0.arrow"}]}))
    names = {"label": {"names": ["music", "travel", "food"], "_type": "ClassLabel"}}
    (folder / "dataset_info.json").write_text(json.dumps({"features": names}))


SOURCES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "lines": ("label_lines", write_lines),
    "csv": ("csv", write_csv),
    "tsv": ("csv", write_tsv),
    "jsonl": ("jsonl", write_jsonl),
    "parquet": ("parquet", write_parquet),
    "datasets": ("hf_datasets", write_hf),
}


@pytest.mark.parametrize("source", list(SOURCES))
def test_every_format_gives_the_same_texts(source: str, tmp_path: Path) -> None:
    kind, write = SOURCES[source]
    write(tmp_path)
    assert next(name for name, (finder, _) in FORMATS.items() if finder(tmp_path)) == kind
    find, read = FORMATS[kind]
    (paths,) = find(tmp_path).values()
    records = list(read(paths, TextColumns()))
    assert [(record.label, record.text) for record in records] == ROWS
    assert all(record.text_id is None and str(tmp_path) in record.where for record in records)


def test_columns_by_name(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("name,stars,body,label\nr1,5,good,x\nr2,1,bad,y\n")
    columns = TextColumns(text="body", label="stars", text_id="name")
    assert [(r.text_id, r.label, r.text) for r in read_rows([tmp_path / "train.csv"], columns)] == [
        ("r1", "5", "good"),
        ("r2", "1", "bad"),
    ]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (TextColumns(), "no column known to hold the text; it has a, b. Name it with --text-column."),
        (TextColumns(text="a"), "no column known to hold the label; it has a, b. Name it with --label-column."),
        (TextColumns(text="a", label="c"), "no column 'c' for the label; it has a, b."),
    ],
)
def test_columns_that_are_not_there(columns: TextColumns, message: str, tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match=re.escape(message)):
        list(read_rows([tmp_path / "train.csv"], columns))


def test_bad_lines_are_named(tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    path.write_bytes(b"0 ||| good\nno separator\n\n1 |||  \n ||| no label\n\xff ||| x\n2 ||| fine ||| still\n")
    records = list(read_lines([path], TextColumns()))
    bad = {record.where.rpartition(":")[2]: record.reason for record in records if isinstance(record, BadRecord)}
    assert bad.keys() == {"2", "4", "5", "6"}
    assert bad["2"] == "no ||| in it; a line is label ||| text"
    assert bad["4"] == "the text is empty"
    assert bad["5"].startswith("the label is ''")
    assert bad["6"] == "not UTF-8"
    good = [record for record in records if isinstance(record, LabelledText)]
    assert [(record.label, record.text) for record in good] == [("0", "good"), ("2", "fine ||| still")]


@pytest.mark.parametrize("value", ["null", "1.5", "true", "[1]"])
def test_labels_are_numbers_or_names(value: str, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(f'{{"text": "a", "label": {value}}}\n')
    (record,) = read_rows([tmp_path / "train.jsonl"], TextColumns())
    assert isinstance(record, BadRecord)
    assert record.reason.startswith("the label is")


def test_other_text_files_are_no_split(tmp_path: Path) -> None:
    write_lines(tmp_path)
    (tmp_path / "README.txt").write_text("What this is.\n")
    assert list(find_lines(tmp_path)) == ["train"]


@pytest.mark.parametrize(
    "mapping", ['{"0": "music", "1": "travel", "10": "food"}', '{"food": 10, "music": 0, "travel": 1}']
)
def test_a_mapping_either_way(mapping: str, tmp_path: Path) -> None:
    (tmp_path / "label-mapping.json").write_text(mapping)
    found = read_mapping(tmp_path, [tmp_path / "train.txt"])
    assert found is not None
    assert list(found.items()) == [("0", "music"), ("1", "travel"), ("10", "food")]
    assert read_mapping(tmp_path / "train.txt", [tmp_path / "train.txt"]) == found


@pytest.mark.parametrize(
    "mapping", ["[]", "{", '{"0": "a"}', '{"0": "a", "1": "a"}', '{"0": "a", "b": "c"}', '{"0": 1}']
)
def test_a_mapping_that_is_none(mapping: str, tmp_path: Path) -> None:
    (tmp_path / "label-mapping.json").write_text(mapping)
    with pytest.raises(UserError, match=r"label-mapping\.json"):
        read_mapping(tmp_path, [tmp_path / "train.txt"])


def test_names_that_datasets_keeps(tmp_path: Path) -> None:
    write_hf(tmp_path)
    assert read_mapping(tmp_path, [tmp_path / "data-0.arrow"]) == {"0": "music", "1": "travel", "2": "food"}


@pytest.mark.slow
def test_a_folder_that_datasets_wrote(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"label": datasets.ClassLabel(names=["music", "travel", "food"]), "text": datasets.Value("string")}
    )
    rows = {"label": [int(label) for label, _ in ROWS], "text": [text for _, text in ROWS]}
    datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows, features=features)}).save_to_disk(
        tmp_path / "saved"
    )
    find, read = FORMATS["hf_datasets"]
    paths = find(tmp_path / "saved")["train"]
    assert [(record.label, record.text) for record in read(paths, TextColumns())] == ROWS
    assert read_mapping(tmp_path / "saved", paths) == {"0": "music", "1": "travel", "2": "food"}
