"""Damaged input of every kind: the import fails, names the file and the line or key, and leaves nothing behind."""

import base64
import io
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from accel_train.errors import UserError
from accel_train.tools.imports.pairs import import_data

Spoil = Callable[[Path], None]


def png(colour: int, size: int = 8) -> bytes:
    stream = io.BytesIO()
    Image.effect_noise((size, size), 50 + colour).save(stream, "PNG")
    return stream.getvalue()


def jpeg() -> bytes:
    stream = io.BytesIO()
    Image.effect_noise((64, 64), 80).save(stream, "JPEG")
    return stream.getvalue()


def in_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


IMAGES = [f"{index}\t{in_base64(png(index))}" for index in range(3)]
TEXTS: list[dict[str, Any]] = [{"text_id": index, "text": f"词{index}", "image_ids": [index]} for index in range(3)]


def tsv(*, images: list[str] | bytes = IMAGES, texts: list[Any] | bytes = TEXTS) -> Spoil:
    """Chinese-CLIP files with one thing wrong. Lines of texts that are strings are written as they are."""

    def write(source: Path) -> None:
        lines = images if isinstance(images, bytes) else "".join(line + "\n" for line in images).encode()
        (source / "train_imgs.tsv").write_bytes(lines)
        if not isinstance(texts, bytes):
            rows = [row if isinstance(row, str) else json.dumps(row) for row in texts]
            (source / "train_texts.jsonl").write_bytes("".join(row + "\n" for row in rows).encode())
        else:
            (source / "train_texts.jsonl").write_bytes(texts)

    return write


def image_line(value: str, image_id: str = "1") -> list[str]:
    """The image file with another second line."""
    return [IMAGES[0], f"{image_id}\t{value}", IMAGES[2]]


def text_line(value: Any) -> list[Any]:
    """The text file with another second line; a dictionary changes fields of the right one."""
    return [TEXTS[0], TEXTS[1] | value if isinstance(value, dict) else value, TEXTS[2]]


def named_file(name: str, content: str | bytes) -> Spoil:
    def write(source: Path) -> None:
        (source / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return write


def both(*parts: Spoil) -> Spoil:
    def write(source: Path) -> None:
        for part in parts:
            part(source)

    return write


def csv_rows(*rows: str, header: str = "image_id,image,text_id,text") -> Spoil:
    return named_file("train.csv", "\n".join([header, *rows]) + "\n")


def jsonl_rows(*rows: Any) -> Spoil:
    return named_file("train.jsonl", "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))


class RunsCode:
    """A pickle of this makes a folder when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("/tmp/accel_train_pickle_ran",)


def lmdb_records(
    *,
    images: dict[bytes, bytes] | None = None,
    pairs: dict[bytes, bytes] | None = None,
    folders: tuple[str, ...] = ("imgs", "pairs"),
) -> Spoil:
    """Three good images and pairs, with some records changed (None as a value removes one)."""

    def write(source: Path) -> None:
        lmdb = pytest.importorskip("lmdb")
        records: dict[str, dict[bytes, bytes | None]] = {
            "imgs": {b"%d" % index: base64.b64encode(png(index)) for index in range(3)} | {b"num_images": b"3"},
            "pairs": {b"%d" % index: pickle.dumps((index, index, f"词{index}")) for index in range(3)}
            | {b"num_samples": b"3"},
        }
        records["imgs"] |= images or {}
        records["pairs"] |= pairs or {}
        for name in folders:
            (source / "train" / name).mkdir(parents=True)
            environment = lmdb.open(str(source / "train" / name), map_size=2**22)
            with environment, environment.begin(write=True) as transaction:
                for key, value in records[name].items():
                    if value is not None:
                        transaction.put(key, value)

    return write


def torn_lmdb(source: Path) -> None:
    lmdb_records()(source)
    path = source / "train" / "pairs" / "data.mdb"
    path.write_bytes(path.read_bytes()[:500])


def torn_parquet(source: Path) -> None:
    parquet.write_table(pa.table({"image": [png(0)], "text": ["a"]}), source / "train.parquet")
    path = source / "train.parquet"
    path.write_bytes(path.read_bytes()[:-20])


def torn_arrow(source: Path) -> None:
    table = pa.table({"image": [png(index) for index in range(50)], "text": ["a"] * 50})
    with pa.ipc.new_stream(str(source / "train.arrow"), table.schema) as file:
        file.write_table(table, max_chunksize=5)
    path = source / "train.arrow"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def numbers_as_captions(source: Path) -> None:
    parquet.write_table(pa.table({"image": [png(0)], "text": [5]}), source / "train.parquet")


def sidecar_missing(source: Path) -> None:
    for index in range(2):
        (source / f"{index}.png").write_bytes(png(index))
    (source / "0.txt").write_text("词")


def sidecar_empty(source: Path) -> None:
    (source / "0.png").write_bytes(png(0))
    (source / "0.txt").write_text("\n")


def state_names_a_file_outside(source: Path) -> None:
    (source / "dataset_info.json").write_text("{}")
    (source / "state.json").write_text(json.dumps({"_data_files": [{"filename": "../secret.arrow"}]}))


GOOD = in_base64(png(0))
BOMB = in_base64(b"P6 30000 30000 255\n" + bytes(100))
LATIN1 = "词".encode() + "\xe9".encode("latin-1")

DAMAGE: dict[str, tuple[Spoil, str]] = {
    # Chinese-CLIP's TSV and JSONL
    "base64 cut off": (
        tsv(images=image_line(in_base64(png(1))[:-3])),
        r"train_imgs\.tsv:2: the image is not complete base64",
    ),
    "base64 with foreign characters": (tsv(images=image_line("§§§§")), r"train_imgs\.tsv:2: .*base64"),
    "image empty": (tsv(images=image_line("")), r"train_imgs\.tsv:2: the image is empty"),
    "image cut off": (
        tsv(images=image_line(in_base64(jpeg()[:-300]))),
        r"train_imgs\.tsv:2: image '1': does not decode",
    ),
    "image is text": (
        tsv(images=image_line(in_base64(b"hello"))),
        r"train_imgs\.tsv:2: image '1': not an image of a known",
    ),
    "decompression bomb": (tsv(images=image_line(BOMB)), r"train_imgs\.tsv:2: image '1': more than 64,000,000 pixels"),
    "image id twice": (tsv(images=[*IMAGES, IMAGES[1]]), r"train_imgs\.tsv:4: image id '1' came before"),
    "image id empty": (tsv(images=image_line(GOOD, "")), r"train_imgs\.tsv:2: the image id is ''"),
    "tab in the image id": (tsv(images=image_line(GOOD, "1\t1")), r"train_imgs\.tsv:2: 3 fields between tabs"),
    "tab in the text id": (tsv(texts=text_line({"text_id": "a\tb"})), r"train_texts\.jsonl:2: text_id is 'a\\tb'"),
    "line without a tab": (tsv(images=[*IMAGES, "just words"]), r"train_imgs\.tsv:4: 1 fields between tabs"),
    "images not UTF-8": (tsv(images=IMAGES[0].encode() + b"\n" + LATIN1), r"train_imgs\.tsv:2: not UTF-8"),
    "texts not UTF-8": (tsv(texts=b'{"text": "' + LATIN1 + b'"}'), r"train_texts\.jsonl:1: not UTF-8"),
    "texts not JSON": (tsv(texts=text_line('{"text_id": 1,')), r"train_texts\.jsonl:2: not JSON"),
    "texts of another type": (tsv(texts=text_line("[1, 2]")), r"train_texts\.jsonl:2: a list where an object"),
    "text without ids": (
        tsv(texts=text_line('{"text": "词"}')),
        r"train_texts\.jsonl:2: lacks text_id, image_ids; it has text",
    ),
    "caption empty": (tsv(texts=text_line({"text": " \t"})), r"train_texts\.jsonl:2: text is empty"),
    "caption is a number": (
        tsv(texts=text_line({"text": 7})),
        r"train_texts\.jsonl:2: text is 7; a caption is a string",
    ),
    "caption with half a character": (
        tsv(texts=text_line({"text": "\ud83d"})),
        r"train_texts\.jsonl:2: text is not valid UTF-8",
    ),
    "text id of another type": (
        tsv(texts=text_line({"text_id": True})),
        r"train_texts\.jsonl:2: text_id is True; an id is",
    ),
    "text id twice": (tsv(texts=[*TEXTS, TEXTS[0]]), r"train_texts\.jsonl:4: text id '0' came before"),
    "unknown image": (
        tsv(texts=text_line({"image_ids": [1, 9]})),
        r"train_texts\.jsonl:2: text '1' names the image '9', which",
    ),
    "image named twice": (
        tsv(texts=text_line({"image_ids": [1, 1]})),
        r"train_texts\.jsonl:2: text '1' names an image twice",
    ),
    "no image ids": (tsv(texts=text_line({"image_ids": []})), r"train_texts\.jsonl:2: image_ids is no list with"),
    "image ids not a list": (tsv(texts=text_line({"image_ids": 1})), r"train_texts\.jsonl:2: image_ids is no list"),
    "empty files": (
        tsv(images=b"", texts=b""),
        r"the split train has no pair of an image and a caption \(0 images, 0 captions\)",
    ),
    "images without captions": (tsv(texts=b""), r"the split train has no pair .*\(3 images, 0 captions\)"),
    "blank line": (tsv(texts=text_line("")), r"train_texts\.jsonl:2: not JSON"),
    "text file missing": (
        named_file("train_imgs.tsv", "\n".join(IMAGES)),
        r"train_imgs\.tsv has no train_texts\.jsonl beside it",
    ),
    # LMDB
    "pickle that runs code": (
        lmdb_records(pairs={b"1": pickle.dumps(RunsCode())}),
        r"pairs: key 1: not a pickled record .*STACK_GLOBAL has no place",
    ),
    "pickle cut off": (
        lmdb_records(pairs={b"2": pickle.dumps((2, 2, "词"))[:-4]}),
        r"pairs: key 2: not a pickled record",
    ),
    "pickle of another type": (lmdb_records(pairs={b"2": pickle.dumps(2)}), r"pairs: key 2: a pickled int that is no"),
    "pickled caption is a number": (
        lmdb_records(pairs={b"2": pickle.dumps((2, 2, 2))}),
        r"pairs: key 2: the text is 2",
    ),
    "pair missing": (lmdb_records(pairs={b"num_samples": b"4"}), r"pairs: key 3: missing"),
    "number of pairs missing": (lmdb_records(pairs={b"num_samples": b"many"}), r"pairs: key num_samples is b'many'"),
    "number of images wrong": (
        lmdb_records(images={b"num_images": b"5"}),
        r"key num_images: says 5 records, and there are 3",
    ),
    "LMDB image damaged": (lmdb_records(images={b"2": b"@@"}), r"imgs: key 2: the image is not complete base64"),
    "LMDB key not UTF-8": (
        lmdb_records(images={b"\xff": base64.b64encode(png(1)), b"num_images": b"4"}),
        r"imgs: key \\xff: the image id is not UTF-8",
    ),
    "LMDB folder missing": (lmdb_records(folders=("imgs",)), r"pairs: no LMDB environment there"),
    "LMDB cut off": (torn_lmdb, r"pairs: (no LMDB environment that can be read|the LMDB environment is damaged)"),
    # CSV
    "no header line": (
        csv_rows(header=f"0,{GOOD},0"),
        r"train\.csv: no column known to hold the image; it has 0, .{40}\.\.\., 0",
    ),
    "column missing": (
        csv_rows("1,词", header="nr,words"),
        r"train\.csv: no column known to hold the image; it has nr, words",
    ),
    "CSV without a line": (
        named_file("train.csv", ""),
        r"train\.csv: no column known to hold the image; it has no columns",
    ),
    "CSV with a header alone": (csv_rows(), r"the split train has no pair"),
    "too few fields": (csv_rows(f"0,{GOOD},0,词", "1"), r"train\.csv:3: not as many fields as the 4"),
    "too many fields": (csv_rows(f"0,{GOOD},0,词,more"), r"train\.csv:2: not as many fields as the 4"),
    "CSV not UTF-8": (
        named_file("train.csv", b"image,text\n" + f"{GOOD},".encode() + LATIN1),
        r"train\.csv:2: text is not valid UTF-8",
    ),
    "quote never closed": (csv_rows('0,"abc'), r"train\.csv:2: not CSV from here on"),
    "image file missing": (
        csv_rows("0,cat.png,0,词"),
        r"train\.csv:2: the image file cat\.png can't be read \(No such file",
    ),
    "path out of the folder": (
        csv_rows("0,../cat.png,0,词"),
        r"train\.csv:2: the image path '\.\./cat\.png' leads out of",
    ),
    "absolute path": (csv_rows("0,/etc/cat.png,0,词"), r"train\.csv:2: the image path '/etc/cat\.png' leads out of"),
    "one image id, two images": (
        csv_rows(f"0,{GOOD},0,a", f"0,{in_base64(png(5))},1,b"),
        r"train\.csv:3: image id '0' came before with another image",
    ),
    "one text id, two captions": (
        csv_rows(f"0,{GOOD},0,a", f"1,{in_base64(png(5))},0,b"),
        r"train\.csv:3: text id '0' came before with another caption",
    ),
    "the same pair twice": (csv_rows(f"0,{GOOD},0,a", f"0,{GOOD},0,a"), r"train\.csv:3: text id '0' came before"),
    "neither path nor base64": (
        csv_rows("0,hello!,0,词"),
        r"train\.csv:2: image is not complete base64 .* and no path",
    ),
    # JSONL, Parquet, Arrow, datasets, folders
    "JSONL not JSON": (jsonl_rows({"image": GOOD, "text": "a"}, "{"), r"train\.jsonl:2: not JSON"),
    "JSONL of another type": (jsonl_rows({"image": GOOD, "text": "a"}, "3"), r"train\.jsonl:2: a int where an object"),
    "JSONL without image": (jsonl_rows({"image": GOOD, "text": "a"}, {"text": "b"}), r"train\.jsonl:2: image is empty"),
    "JSONL image is a list": (
        jsonl_rows({"image": [1], "text": "a"}),
        r"train\.jsonl:1: image holds no image \(list\)",
    ),
    "JSONL without text": (
        jsonl_rows({"image": GOOD, "caption": None}),
        r"train\.jsonl:1: caption is None; a caption is",
    ),
    "Parquet torn": (torn_parquet, r"train\.parquet: can't be read after row 0"),
    "Arrow torn": (torn_arrow, r"train\.arrow: can't be read after row \d+"),
    "captions of another type": (numbers_as_captions, r"train\.parquet: row 0: text is 5; a caption is a string"),
    "dataset names a file outside": (state_names_a_file_outside, r"state\.json: names the file '\.\./secret\.arrow'"),
    "dataset state damaged": (
        both(named_file("dataset_info.json", "{}"), named_file("state.json", "{}")),
        r"state\.json: not the state of a saved dataset",
    ),
    "sidecar missing": (sidecar_missing, r"1\.png: no 1\.txt beside it, and other images have one"),
    "sidecar empty": (sidecar_empty, r"0\.txt: no caption in it"),
    "image in a folder damaged": (named_file("cat.jpg", b"hello"), r"cat\.jpg: image 'cat\.jpg': not an image"),
    "nothing to import": (named_file("readme.md", "hello"), r"source holds nothing in any format this program reads"),
}


@pytest.mark.parametrize("kind", list(DAMAGE))
def test_damage_is_named(tmp_path: Path, kind: str) -> None:
    spoil, message = DAMAGE[kind]
    source = tmp_path / "source"
    source.mkdir()
    spoil(source)
    with pytest.raises(UserError, match=message):
        import_data(str(source), str(tmp_path / "dataset"))
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    assert not Path("/tmp/accel_train_pickle_ran").exists()


def test_the_undamaged_twins_import(tmp_path: Path) -> None:
    """Without the damage the same sources are fine, so each error above comes from the damage."""
    for name, write in {"tsv": tsv(), "lmdb": lmdb_records(), "csv": csv_rows(f"0,{GOOD},0,词")}.items():
        (tmp_path / name).mkdir()
        write(tmp_path / name)
        assert import_data(str(tmp_path / name), str(tmp_path / f"{name}_dataset")).num_bad == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "tfrecord"}, "--format is 'tfrecord'; it is one of chinese_clip_tsv"),
        ({"format": "parquet"}, "holds nothing in the format parquet"),
        ({"splits": ["test"]}, "no split 'test'; it has train"),
        ({"valid_share": 1.0}, r"--valid-share is 1\.0"),
        ({"valid_share": 0.0}, r"--valid-share is 0\.0"),
        ({"build_tokenizer": 5}, "--build-tokenizer is 5; 5 tokens are special"),
        ({"max_bad_records": -1}, "--max-bad-records is -1"),
    ],
)
def test_wrong_options(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    (tmp_path / "source").mkdir()
    tsv()(tmp_path / "source")
    with pytest.raises(UserError, match=message):
        import_data(str(tmp_path / "source"), str(tmp_path / "dataset"), **options)


def test_unknown_columns(tmp_path: Path) -> None:
    csv_rows(f"0,{GOOD},0,词")(tmp_path)
    for option in ("image_column", "text_column", "image_id_column", "text_id_column"):
        with pytest.raises(UserError, match=r"no column 'nix' for .*; it has image_id, image, text_id, text"):
            import_data(str(tmp_path), str(tmp_path / "dataset"), **{option: "nix"})


def test_existing_output_is_left_alone(tmp_path: Path) -> None:
    tsv()(tmp_path)
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "precious").write_text("keep")
    with pytest.raises(UserError, match="dataset already exists"):
        import_data(str(tmp_path), str(tmp_path / "dataset"))
    assert (tmp_path / "dataset" / "precious").read_text() == "keep"


def test_missing_source(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere does not exist"):
        import_data(str(tmp_path / "nowhere"), str(tmp_path / "dataset"))


def test_all_bad_records_are_counted_and_the_first_listed(tmp_path: Path) -> None:
    tsv(images=[f"{index}\t????" for index in range(150)], texts=[])(tmp_path)
    with pytest.raises(UserError) as caught:
        import_data(str(tmp_path), str(tmp_path / "dataset"))
    lines = str(caught.value).splitlines()
    assert "150 bad records" in lines[0]
    assert len(lines) == 102 and lines[-1] == "... and 50 more"


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*values: object) -> None:
        raise OSError(28, "No space left on device")

    tsv()(tmp_path)
    monkeypatch.setattr("accel_train.data.arrow_writer.SplitWriter.add_text", full)
    with pytest.raises(UserError, match=r"dataset can't be written .*No space left"):
        import_data(str(tmp_path), str(tmp_path / "dataset"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train_imgs.tsv", "train_texts.jsonl"]
