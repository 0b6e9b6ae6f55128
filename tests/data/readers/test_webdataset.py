"""Shards as webdataset and img2dataset write them, and shards that nobody should have written."""

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from accel_train.data.readers import webdataset
from accel_train.data.readers.records import BadRecord, Columns, ImageRecord, Record, TextRecord
from accel_train.data.splits import open_split
from accel_train.errors import UserError
from accel_train.tools.imports.pairs import find_source, import_data

Files = list[tuple[str, bytes]]


def image(seed: int, kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def shard(path: Path, files: Files, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as archive:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def sample(index: int, caption: str | None = None) -> Files:
    """One image and its caption."""
    return [(f"{index:05}.jpg", image(index, "JPEG")), (f"{index:05}.txt", (caption or f"词{index}").encode())]


def records(*shards: Path, columns: Columns | None = None) -> list[Record]:
    return list(webdataset.read(list(shards), columns or Columns()))


def captions(found: list[Record]) -> dict[str, str]:
    return {record.text_id: record.text for record in found if isinstance(record, TextRecord)}


def faults(found: list[Record]) -> list[str]:
    return [f"{record.where}: {record.reason}" for record in found if isinstance(record, BadRecord)]


@pytest.mark.parametrize("layout", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_import_reads_every_shard_of_every_split(tmp_path: Path, layout: int) -> None:
    source = tmp_path / "source"
    shard(source / "train-000000.tar", [*sample(0), *sample(1)], format=layout)
    shard(
        source / "train-000001.tar", [("很长/" * 30 + "2.webp", image(2, "WEBP")), ("很长/" * 30 + "2.txt", b"red\n")]
    )
    shard(source / "valid-000000.tar", sample(3), format=layout)
    summary = import_data(str(source), str(tmp_path / "first"))
    assert (summary.format, summary.num_bad) == ("webdataset", 0)
    assert {name: split["num_pairs"] for name, split in summary.splits.items()} == {"train": 3, "valid": 1}
    train = open_split(str(tmp_path / "first"), "train")
    assert [train.images.value("image_id", row) for row in range(3)] == ["00000", "00001", "很长/" * 30 + "2"]
    assert [train.images.value("image", row) for row in range(2)] == [image(0, "JPEG"), image(1, "JPEG")]
    assert [train.texts.value("text", row) for row in range(3)] == ["词0", "词1", "red"]
    assert import_data(str(source), str(tmp_path / "second")).splits == summary.splits


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train/00000.tar", "train/00001.tar", "val/00000.tar"], {"train": 2, "val": 1}),
        (["train-0000.tar", "val-0000.tar", "val_1.tar"], {"train": 1, "val": 2}),
        (["shard-000000.tar", "shard-000001.tar"], {"train": 2}),
        (["00000.tar", "00001.tar"], {"train": 2}),
        (["cc3m-00.tar", "laion-00.tar"], {"cc3m": 1, "laion": 1}),
        (["test-000-of-002.tar", "test-001-of-002.tar"], {"test": 2}),
    ],
)
def test_splits_go_by_folder_or_by_name(tmp_path: Path, names: list[str], splits: dict[str, int]) -> None:
    for index, name in enumerate(names):
        shard(tmp_path / name, sample(index))
    (tmp_path / "00000.parquet").write_bytes(b"img2dataset lays what it knows of the addresses beside the shards")
    format, found = find_source(tmp_path, None, None)
    assert format == "webdataset"
    assert {name: len(paths) for name, paths in found.items()} == splits
    assert all(paths == sorted(paths) for paths in found.values())


def test_a_single_shard_is_a_source(tmp_path: Path) -> None:
    assert list(webdataset.find_splits(shard(tmp_path / "00007.tar", sample(0)))) == ["train"]
    assert list(webdataset.find_splits(shard(tmp_path / "valid-0.tar", sample(0)))) == ["valid"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["0.tar", "train/0.tar"], "holds shards, and so does its folder train"),
        (["a b/0.tar"], "'a b' can't be the name of a split"),
        (["0.tar", "train-0.tar"], "some shards are named after a split and some by a number alone"),
    ],
)
def test_unclear_splits_are_refused(tmp_path: Path, names: list[str], message: str) -> None:
    for name in names:
        shard(tmp_path / name, sample(0))
    with pytest.raises(UserError, match=message):
        webdataset.find_splits(tmp_path)


def test_captions_come_from_text_or_json(tmp_path: Path) -> None:
    fields = {"caption": "from json", "title": "a title", "many": ["one", "two"]}
    files = [
        ("a.png", image(0)), ("a.txt", "\ufeff from text \n".encode()), ("a.json", json.dumps(fields).encode()),
        ("b.PNG", image(1)), ("b.json", json.dumps(fields).encode()), ("b.cls", b"7"), ("b.seg.png", image(9)),
    ]  # fmt: skip
    path = shard(tmp_path / "0.tar", files)
    assert captions(records(path)) == {"a#0": "from text", "b#0": "from json"}
    assert captions(records(path, columns=Columns(text="title"))) == {"a#0": "a title", "b#0": "a title"}
    many = records(path, columns=Columns(text="many"))
    assert captions(many) == {"a#0": "one", "a#1": "two", "b#0": "one", "b#1": "two"}
    assert [record.image for record in many if isinstance(record, ImageRecord)] == [image(0), image(1)]


def test_hidden_files_folders_and_files_without_an_ending_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "0.tar"
    with tarfile.open(path, "w") as archive:
        folder = tarfile.TarInfo("./images")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, content in [("./images/._a.jpg", b"mac"), ("README", b"hello"), ("./images/a.png", image(0)),
                              ("./images/.DS_Store", b"mac"), ("./images/a.txt", b"red")]:  # fmt: skip
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    assert captions(records(path)) == {"images/a#0": "red"} and faults(records(path)) == []


PNG, RED = image(0), b"red"
DAMAGE: dict[str, tuple[Files, str]] = {
    "no caption": ([("b.png", PNG)], r"0\.tar: 'b': lacks a caption \(\.txt or \.json\)"),
    "no image": ([("b.txt", RED)], r"0\.tar: 'b': lacks an image \(\.jpg, .*\); it has txt"),
    "neither": ([("b.npy", RED)], r"0\.tar: 'b': lacks an image .*; it has nothing"),
    "two images": ([("b.png", PNG), ("b.jpg", PNG), ("b.txt", RED)], r"0\.tar: 'b\.jpg': a second image file"),
    "two texts": ([("b.png", PNG), ("b.txt", RED), ("b.txt", RED)], r"0\.tar: 'b\.txt': a second txt file"),
    "caption empty": ([("b.png", PNG), ("b.txt", b" \n")], r"0\.tar: 'b': the text file is empty"),
    "caption not UTF-8": ([("b.png", PNG), ("b.txt", b"\xff")], r"0\.tar: 'b': its \.txt file is not UTF-8"),
    "not JSON": ([("b.png", PNG), ("b.json", b"{")], r"0\.tar: 'b': its \.json file is not JSON"),
    "deep JSON": ([("b.png", PNG), ("b.json", b"[" * 200_000)], r"0\.tar: 'b': its \.json file is not JSON"),
    "JSON list": ([("b.png", PNG), ("b.json", b"[1]")], r"0\.tar: 'b': its \.json file holds a list"),
    "JSON without caption": (
        [("b.png", PNG), ("b.json", b'{"a": 1}')],
        r"0\.tar: 'b': its \.json file has no field known to hold the caption \(text, caption",
    ),
    "caption a number": ([("b.png", PNG), ("b.json", b'{"text": 1}')], r"0\.tar: 'b': text is 1; a caption"),
    "no captions": ([("b.png", PNG), ("b.json", b'{"text": []}')], r"0\.tar: 'b': text is empty"),
    "absolute name": ([("/b.png", PNG), ("/b.txt", RED)], r"0\.tar: '/b\.png': its name is absolute"),
    "name leads out": (
        [("../b.png", PNG), ("x/../../b.txt", RED)],
        r"0\.tar: '\.\./b\.png': its name leads out of the archive",
    ),
    "control characters": ([("b\n\x1b[2J.png", PNG), ("b\n\x1b[2J.txt", RED)], r"'b\\n\\x1b\[2J': the key is"),
    "text too long": ([("b.png", PNG), ("b.txt", b"a" * (2**20 + 1))], r"'b\.txt': 1,048,577 bytes; at most 1,048,576"),
}


@pytest.mark.parametrize("kind", list(DAMAGE))
def test_bad_samples_are_named_and_the_others_kept(tmp_path: Path, kind: str) -> None:
    files, message = DAMAGE[kind]
    good = [("a.png", image(1)), ("a.txt", RED)]
    shard(tmp_path / "source" / "0.tar", [*good, *files, ("c.png", image(2)), ("c.txt", RED)])
    with pytest.raises(UserError, match=message):
        import_data(str(tmp_path / "source"), str(tmp_path / "none"))
    summary = import_data(str(tmp_path / "source"), str(tmp_path / "dataset"), max_bad_records=2)
    assert 1 <= summary.num_bad <= 2 and summary.splits["train"]["num_pairs"] == 2
    assert not (tmp_path.parent / "b.png").exists()


def test_a_name_that_is_not_utf_8_is_a_bad_record(tmp_path: Path) -> None:
    path = shard(tmp_path / "0.tar", [("b\udcff.png", PNG), ("b\udcff.txt", RED)], format=tarfile.GNU_FORMAT)
    assert faults(records(path)) == [f"{path}: 'b\\udcff': the key is not valid UTF-8"]


def test_an_image_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webdataset, "MAX_IMAGE_BYTES", 50)
    path = shard(tmp_path / "0.tar", [("b.png", PNG), ("b.txt", RED)])
    assert faults(records(path)) == [f"{path}: 'b.png': {len(PNG):,} bytes; at most 50 are read"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    path = tmp_path / "0.tar"
    with tarfile.open(path, "w") as archive:
        link = tarfile.TarInfo("b.png")
        link.type, link.linkname = kind, "/etc/passwd"
        archive.addfile(link)
        text = tarfile.TarInfo("b.txt")
        text.size = 3
        archive.addfile(text, io.BytesIO(RED))
    wanted = "a link to '/etc/passwd'; links are not followed" if kind in (b"1", b"2") else "not a plain file"
    assert faults(records(path)) == [f"{path}: 'b.png': {wanted}"]


def test_keys_that_come_again_are_named_with_the_shard_they_were_in(tmp_path: Path) -> None:
    first = shard(tmp_path / "0.tar", [*sample(0), *sample(1)])
    second = shard(tmp_path / "1.tar", [*sample(2), *sample(1)])
    found = records(first, second)
    assert list(captions(found)) == ["00000#0", "00001#0", "00002#0"]
    assert faults(found) == [f"{second}: '00001': the key came before in {first}"]


def test_files_of_a_sample_that_do_not_stand_side_by_side(tmp_path: Path) -> None:
    (one, text), other = sample(0), sample(1)
    found = records(shard(tmp_path / "0.tar", [one, *other, text]))
    assert list(captions(found)) == ["00001#0"]
    assert [fault.split(": ", 1)[1] for fault in faults(found)] == [
        "'00000': lacks a caption (.txt or .json)",
        "'00000': the key came before in this shard; the files of a sample stand side by side",
    ]


@pytest.mark.parametrize("part", ["image", "image_id", "text_id"])
def test_options_that_would_be_ignored_are_refused(tmp_path: Path, part: str) -> None:
    path = shard(tmp_path / "0.tar", sample(0))
    with pytest.raises(UserError, match="Leave out all options for columns but --text-column"):
        records(path, columns=Columns(**{part: "x"}))
    assert faults(records(path, columns=Columns(text="x"))) == [f"{path}: '00000': lacks a .json file"]


def damaged(content: bytes) -> Iterator[tuple[str, bytes, str]]:
    """What is wrong, a shard of two samples with that, and the message."""
    members_end = content.rindex(b"\0ustar") // 512 * 512 + 1024
    second = content.index(b"00001.jpg")
    spoilt_header = content[: second + 100] + b"?" + content[second + 101 :]
    cut, empty = "it ends without the mark for its end", bytes(10240)
    yield "header", spoilt_header, r"at or after the member '00000\.txt' \(what follows is not the header"
    yield "content cut off", content[: second + 700], r"the member '00001\.jpg' is cut off: 188 of \d+ bytes"
    yield "cut between members", content[:second], rf"at or after the member '00000\.txt' \({cut}"
    yield "no mark for the end", content[:members_end], rf"at or after the member '00001\.txt' \({cut}"
    yield "two archives in one", content + content, "data follows the mark for its end"
    yield "data behind", content + empty + b"x", "data follows the mark for its end"
    yield "no tar file", b"hello" * 500, "damaged before its first member"
    yield "compressed", b"\x1f\x8b\x08" + content, "damaged before its first member .* an uncompressed tar file"
    yield "empty", b"", "damaged before its first member"


def test_damaged_shards_are_named_with_the_place(tmp_path: Path) -> None:
    path = shard(tmp_path / "0.tar", [*sample(0), *sample(1)])
    whole = path.read_bytes()
    assert len(captions(records(path))) == 2
    for what, content, message in damaged(whole):
        path.write_bytes(content)
        with pytest.raises(UserError, match=message) as caught:
            records(path)
        assert str(caught.value).startswith(str(path)), what


def header(name: bytes, size: bytes, kind: bytes) -> bytes:
    """A tar header with a right checksum and whatever else one likes."""
    block = bytearray(512)
    block[: len(name)] = name
    block[124 : 124 + len(size)] = size
    block[148:156] = b" " * 8
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


HUGE, NEGATIVE = b"\x80" + (2**62).to_bytes(11, "big"), b"\xff" * 10 + b"\xfe\x00"
HOSTILE = {
    "endless file": header(b"a.png", HUGE, b"0"),
    "endless array": header(b"a.npy", HUGE, b"0"),
    "negative size": header(b"a.png", NEGATIVE, b"0") + bytes(2048),
    "endless name": header(b"a", HUGE, b"L"),
    "endless properties": header(b"a", HUGE, b"x"),
    "negative properties": header(b"a", NEGATIVE, b"x") + bytes(2048),
    "name that is too long": header(b"a", b"%011o\0" % 2**21, b"L") + b"a" * 2**21 + bytes(1024),
    "properties of properties": header(b"a", b"%011o\0" % 0, b"x") * 3000 + bytes(1024),
    "names of names": (header(b"a", b"%011o\0" % 1, b"L") + b"a" + bytes(511)) * 3000 + bytes(1024),
}


@pytest.mark.parametrize("kind", list(HOSTILE))
def test_hostile_headers_end_in_one_error(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "0.tar"
    path.write_bytes(HOSTILE[kind])
    with pytest.raises(UserError, match=r"0\.tar: (damaged|the member 'a\.png' is)"):
        records(path)
