import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from accel_train.data import arrow_writer
from accel_train.data.arrow_split import SCHEMAS, ArrowRows, open_arrow_split, read_description
from accel_train.data.arrow_split import dataset_folder as sample_folder
from accel_train.data.arrow_writer import SplitWriter, TableWriter, content_key
from accel_train.errors import UserError


def test_rows_come_back_from_any_record_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow_writer, "BATCH_ROWS", 4)
    writer = TableWriter(tmp_path / "texts.arrow", SCHEMAS["texts"])
    for index in range(11):
        writer.append(f"id{index}", f"文{index}", index * 7)
    writer.close()
    rows = ArrowRows(tmp_path / "texts.arrow", SCHEMAS["texts"])
    assert len(rows) == 11
    for index in (10, 0, 3, 4, 7, 8):
        assert rows.value("text", index) == f"文{index}"
        assert rows.value("text_key", index) == index * 7
    assert rows.column("text_key").tolist() == [index * 7 for index in range(11)]


def test_large_images_close_a_batch_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow_writer, "BATCH_BYTES", 100)
    writer = TableWriter(tmp_path / "images.arrow", SCHEMAS["images"])
    for index in range(6):
        writer.append(str(index), bytes([index]) * 60, index)
    writer.close()
    assert pa.ipc.open_file(str(tmp_path / "images.arrow")).num_record_batches == 3
    assert ArrowRows(tmp_path / "images.arrow", SCHEMAS["images"]).value("image", 5) == bytes([5]) * 60


def test_keys_are_63_bit_hashes_of_the_content() -> None:
    assert content_key(b"a") == content_key(b"a") != content_key(b"b")
    assert all(0 <= content_key(bytes([index])) < 2**63 for index in range(50))


def test_split_tells_its_size_and_matches(dataset_folder: Path) -> None:
    split = open_arrow_split(str(dataset_folder), "valid")
    assert (split.num_images, split.num_texts, split.num_pairs) == (7, 13, 13)
    assert split.matches().tolist() == [[index // 2, index] for index in range(13)]


def test_fingerprint_changes_with_every_kind_of_content(tmp_path: Path) -> None:
    def fingerprint(name: str, image_id: str = "a", image: bytes = b"x", text: str = "t", row: int = 0) -> str:
        writer = SplitWriter(tmp_path / name)
        writer.add_image(image_id, image)
        writer.add_image("b", b"y")
        writer.add_text("0", text, [row])
        return str(writer.close()["fingerprint"])

    same = fingerprint("1")
    assert fingerprint("2") == same
    others = {
        fingerprint("3", image_id="c"),
        fingerprint("4", image=b"z"),
        fingerprint("5", text="u"),
        fingerprint("6", row=1),
    }
    assert len(others) == 4 and same not in others


def test_a_pickled_split_is_small_and_opens_in_another_process(dataset_folder: Path) -> None:
    split = open_arrow_split(str(dataset_folder), "train")
    split.images.value("image", 0)
    data = pickle.dumps(split)
    assert len(data) < 2000
    assert pickle.loads(data).texts.value("text_id", 3) == "txt3"


def test_a_forked_process_opens_files_of_its_own(dataset_folder: Path) -> None:
    split = open_arrow_split(str(dataset_folder), "train")
    parents = split.images._opened()
    read_end, write_end = os.pipe()
    if (child := os.fork()) == 0:
        os.write(write_end, b"new" if split.images._opened() is not parents else b"old")
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read_end, 3) == b"new"
    assert split.images._opened() is parents
    os.close(read_end)
    os.close(write_end)


def test_the_sample_is_whole() -> None:
    train, valid = open_arrow_split("sample:emoji-zh", "train"), open_arrow_split("sample:emoji-zh", "valid")
    assert (train.num_images, train.num_pairs) == (2931, 5816)
    assert (valid.num_images, valid.num_pairs) == (367, 729)
    folder = sample_folder("sample:emoji-zh")
    assert sum(path.stat().st_size for path in folder.rglob("*")) < 6_000_000
    assert {path.name for path in folder.glob("*[A-Z]*")} == {"NOTICE", "LICENSE-OFL-1.1.txt", "LICENSE-UNICODE.txt"}


def test_unknown_names_are_told_apart(tmp_path: Path, dataset_folder: Path) -> None:
    with pytest.raises(UserError, match=r"no sample 'sample:cats'; this package holds sample:emoji-zh"):
        open_arrow_split("sample:cats", "train")
    with pytest.raises(UserError, match="no sample"):
        open_arrow_split("sample:../data", "train")
    with pytest.raises(UserError, match="is no folder"):
        open_arrow_split(str(tmp_path / "nothing"), "train")
    with pytest.raises(UserError, match="no split 'test'; it has train, valid"):
        open_arrow_split(str(dataset_folder), "test")


def damage_torn(split: Path) -> None:
    path = split / "images.arrow"
    path.write_bytes(path.read_bytes()[:-100])


def damage_other_columns(split: Path) -> None:
    (split / "texts.arrow").write_bytes((split / "pairs.arrow").read_bytes())


def damage_missing(split: Path) -> None:
    (split / "pairs.arrow").unlink()


def damage_count(split: Path) -> None:
    (split / "pairs.arrow").write_bytes((split.parent / "valid" / "pairs.arrow").read_bytes())


def damage_json(split: Path) -> None:
    (split.parent / "dataset.json").write_text("{")


def damage_version(split: Path) -> None:
    path = split.parent / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 99}))


def damage_list(split: Path) -> None:
    (split.parent / "dataset.json").write_text("[]")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_torn, r"images\.arrow: not a whole Arrow file"),
        (damage_other_columns, r"texts\.arrow: holds the columns image_row int64"),
        (damage_missing, r"pairs\.arrow: not a whole Arrow file"),
        (damage_count, r"pairs\.arrow: has 13 rows, but dataset\.json says 59"),
        (damage_json, r"dataset\.json: not a dataset description"),
        (damage_list, r"dataset\.json: not a dataset description"),
        (damage_version, "format version 99; this program reads 1"),
    ],
)
def test_damage_is_found_when_a_split_is_opened(dataset_folder: Path, damage, message: str) -> None:  # type: ignore[no-untyped-def]
    damage(dataset_folder / "train")
    with pytest.raises(UserError, match=message):
        open_arrow_split(str(dataset_folder), "train")


def test_a_dataset_for_another_task_is_told_by_its_name(dataset_folder: Path) -> None:
    description = json.loads((dataset_folder / "dataset.json").read_text())
    description |= {"task": "scorer", "splits": {"train": {"num_samples": 3}}}
    (dataset_folder / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match=r"imported for the task scorer, not for contrastive\. Import it with --task c"):
        open_arrow_split(str(dataset_folder), "train")
    assert read_description(dataset_folder, "scorer", "num_samples")["splits"] == {"train": {"num_samples": 3}}


def test_reading_numbers_imports_no_pandas(dataset_folder: Path) -> None:
    """Half a second of every process's start."""
    program = (
        "import sys\n"
        "from accel_train.data.arrow_split import open_arrow_split\n"
        "print(open_arrow_split(sys.argv[1], 'train').pairs.column('image_row').tolist(), 'pandas' in sys.modules)"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program, str(dataset_folder)], capture_output=True, text=True, check=True
    ).stdout
    expected = open_arrow_split(str(dataset_folder), "train").pairs.column("image_row")
    assert printed.split() == f"{expected.tolist()} False".split()
