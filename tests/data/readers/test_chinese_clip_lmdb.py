"""LMDB folders as the original build_lmdb_dataset.py writes them, and records that would do more than hold values."""

import base64
import builtins
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from accel_train.data.readers import chinese_clip_lmdb
from accel_train.data.readers.records import BadRecord, Columns, ImageRecord, Record, TextRecord

lmdb = pytest.importorskip("lmdb")

IMAGE = bytes(range(256))


def environment(folder: Path, records: dict[str, bytes]) -> None:
    folder.mkdir(parents=True)
    with lmdb.open(str(folder), map_size=2**40) as opened, opened.begin(write=True) as transaction:
        for key, value in records.items():
            transaction.put(key.encode(), value)


def records(folder: Path, pairs: list[bytes], encode: Callable[[bytes], bytes] = base64.b64encode) -> list[Record]:
    """Reads a split of the images 7 and 1000002 and some pairs, each given as the pickle that is stored."""
    images = {"7": encode(IMAGE), "1000002": encode(IMAGE[::-1]), "num_images": b"2"}
    environment(folder / "lmdb" / "train" / "imgs", images)
    numbered = {str(index): pair for index, pair in enumerate(pairs)}
    environment(folder / "lmdb" / "train" / "pairs", numbered | {"num_samples": str(len(pairs)).encode()})
    files = chinese_clip_lmdb.find_splits(folder)["train"]
    return list(chinese_clip_lmdb.read(files, Columns()))


def reason(folder: Path, pair: bytes) -> str:
    """Why one pair was refused."""
    (bad,) = [record for record in records(folder, [pair]) if isinstance(record, BadRecord)]
    assert bad.where.endswith("pairs: key 0")
    return bad.reason


@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol_and_alphabet_of_the_original(
    tmp_path: Path, protocol: int, encode: Callable[[bytes], bytes]
) -> None:
    """An id is a number in the JSON lines, mostly, and always a string in the TSV file: they must meet."""
    pairs = [(7, 8428, "高级感托特包"), ("1000002", "8429", "bag 👜"), ("7", "7", "7"), (2**40, -5, "a" * 70_000)]
    found = records(tmp_path, [pickle.dumps(pair, protocol) for pair in pairs], encode)
    images = {record.image_id: record.image for record in found if isinstance(record, ImageRecord)}
    assert images == {"7": IMAGE, "1000002": IMAGE[::-1]}
    texts = [record for record in found if isinstance(record, TextRecord)]
    assert [(text.image_ids[0], text.text_id, text.text) for text in texts] == [
        (str(image_id), str(text_id), text) for image_id, text_id, text in pairs
    ]
    assert all(text.is_pair for text in texts) and len(found) == 6


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


HOSTILE = {
    "os.system": Calls(os.system, "touch PROOF"),
    "eval": Calls(builtins.eval, "open('PROOF', 'w')"),
    "exec": Calls(builtins.exec, "open('PROOF', 'w')"),
    "nested": (7, (1, [Calls(os.system, "touch PROOF")]), "text"),
    "as text": (7, 8, Calls(os.getcwd)),
    "as image id": (Calls(os.getpid), 8, "text"),
    "numpy number": (np.int64(7), 8, "text"),
    "numpy array": np.arange(3),
    "numpy of objects": np.array([Calls(os.system, "touch PROOF")], dtype=object),
    "a class": (7, 8, Path),
    "an object": (7, 8, Path("x")),
    "bytes": (7, 8, b"text"),
    "list": [7, 8, "text"],
    "dictionary": {"image_id": 7},
    "None": (7, 8, None),
    "float": (7.0, 8, "text"),
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("kind", list(HOSTILE))
def test_nothing_but_plain_values_is_unpickled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, protocol: int
) -> None:
    monkeypatch.chdir(tmp_path)
    pair = pickle.dumps(HOSTILE[kind], protocol)
    assert "has no place in a record of plain values" in reason(tmp_path, pair)
    assert not (tmp_path / "PROOF").exists()


WRITTEN_BY_HAND = {
    "instance of a class": (b"(ios\nsystem\nS'touch PROOF'\n.", "INST has no place"),
    "object of a class": (b"(cos\nsystem\nS'touch PROOF'\no.", "GLOBAL has no place"),
    "extension": (b"\x80\x02\x82\x01.", "EXT1 has no place"),
    "persistent id": (b"Pfile\n.", "PERSID has no place"),
    "memory for the memo": (b"\x80\x02K\x01r\xff\xff\xff\x7f.", "LONG_BINPUT 2147483647 asks for too much memory"),
    "memory for the memo, in digits": (b"I1\np999999999\n.", "PUT 999999999 asks for too much memory"),
    "a string longer than the record": (b"\x80\x04\x8d" + b"\xff" * 7 + b"\x00abc.", "not a pickled record"),
    "a number without end": (b"\x80\x02\x8a\xff" + b"\x01" * 255 + b"K\x01K\x02\x87.", "more than 256 bits"),
    "digits without end": (b"L" + b"9" * 10_000 + b"L\n.", "not a pickled record"),
    "a tuple that doubles": (b"(t" + b"p0\n(g0\ng0\nt" * 60 + b"p0\nK\x01K\x02\x87.", "holds other things"),
    "an index that is not there": (b"h\x07.", "not a pickled record"),
    "no stop": (pickle.dumps((7, 8, "text"))[:-1], "not a pickled record"),
    "empty": (b"", "not a pickled record"),
    "two values": (b"K\x07K\x08.", "a pickled int that is no"),
    "truth": (b"I01\nK\x08X\x01\x00\x00\x00a\x87.", "the image id is True"),
}


@pytest.mark.parametrize("kind", list(WRITTEN_BY_HAND))
def test_pickles_that_no_program_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.chdir(tmp_path)
    pair, message = WRITTEN_BY_HAND[kind]
    assert message in reason(tmp_path, pair)
    assert not (tmp_path / "PROOF").exists()


def test_an_image_written_twice_is_counted_by_the_original_and_missed_here(tmp_path: Path) -> None:
    """Its script counts lines, and LMDB keeps one record for each key."""
    environment(tmp_path / "train" / "imgs", {"7": base64.b64encode(IMAGE), "num_images": b"2"})
    environment(tmp_path / "train" / "pairs", {"0": pickle.dumps((7, 1, "a")), "num_samples": b"1"})
    found = list(chinese_clip_lmdb.read(chinese_clip_lmdb.find_splits(tmp_path)["train"], Columns()))
    (bad,) = [record for record in found if isinstance(record, BadRecord)]
    assert bad.where.endswith("imgs: key num_images") and bad.reason == "says 2 records, and there are 1"
