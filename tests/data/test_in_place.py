"""Chinese-CLIP's files read where they are give what an import of them gives."""

import base64
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from accel_train.config.contrastive import PairData
from accel_train.data.dataset import UnreadableSample
from accel_train.data.in_place import find_in_place, index_folder
from accel_train.data.loader import train_steps
from accel_train.data.order import Order
from accel_train.data.pairs import ImageDataset, PairDataset
from accel_train.data.splits import open_split
from accel_train.errors import UserError

MakeSection = Callable[..., PairData]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write_tsv(folder: Path, dataset: Path, *, mark: bytes = b"", line_break: str = "\n") -> Path:
    folder.mkdir()
    for split in ("train", "valid"):
        found = open_split(str(dataset), split)
        images = [
            f"{found.images.value('image_id', row)}\t{base64.b64encode(found.images.value('image', row)).decode()}"
            for row in range(found.num_images)
        ]
        (folder / f"{split}_imgs.tsv").write_bytes(mark + "".join(line + line_break for line in images).encode())
        linked: dict[int, list[str]] = {}
        for image_row, text_row in found.matches().tolist():
            linked.setdefault(text_row, []).append(found.images.value("image_id", image_row))
        texts = [
            {
                "text_id": found.texts.value("text_id", row),
                "text": found.texts.value("text", row),
                "image_ids": linked[row],
            }
            for row in range(found.num_texts)
        ]
        (folder / f"{split}_texts.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    return folder


def write_lmdb(folder: Path, dataset: Path) -> Path:
    lmdb = pytest.importorskip("lmdb")
    for split in ("train", "valid"):
        found = open_split(str(dataset), split)
        ids = [found.images.value("image_id", row) for row in range(found.num_images)]
        images = {name.encode(): base64.b64encode(found.images.value("image", row)) for row, name in enumerate(ids)}
        pairs = [
            (ids[image_row], found.texts.value("text_id", text_row), found.texts.value("text", text_row))
            for image_row, text_row in found.matches().tolist()
        ]
        records = {str(index).encode(): pickle.dumps(pair) for index, pair in enumerate(pairs)}
        for name, values in {
            "imgs": images | {b"num_images": str(len(ids)).encode()},
            "pairs": records | {b"num_samples": str(len(pairs)).encode()},
        }.items():
            (folder / split).mkdir(parents=True, exist_ok=True)
            environment = lmdb.open(str(folder / split / name), map_size=2**24)
            with environment, environment.begin(write=True) as transaction:
                for key, value in values.items():
                    transaction.put(key, value)
    return folder


WRITERS = {"tsv": write_tsv, "lmdb": write_lmdb}


def fingerprint_of_import(source: Path, output: Path) -> str:
    from accel_train.tools.imports.pairs import import_data

    import_data(str(source), str(output), show_progress=False)
    return open_split(str(output), "train").fingerprint


@pytest.mark.parametrize("kind", WRITERS)
def test_rows_and_fingerprint_are_those_of_an_import(tmp_path: Path, dataset_folder: Path, kind: str) -> None:
    source = WRITERS[kind](tmp_path / kind, dataset_folder)
    placed = open_split(str(source), "train")
    assert placed.fingerprint == fingerprint_of_import(source, tmp_path / "imported")
    imported = open_split(str(tmp_path / "imported"), "train")
    assert torch.equal(placed.matches(), imported.matches())
    for row in range(imported.num_images):
        for column in ("image_id", "image", "image_key"):
            assert placed.images.value(column, row) == imported.images.value(column, row)


@pytest.mark.parametrize(
    ("kind", "start_method"), [("tsv", "fork"), ("lmdb", "fork"), pytest.param("lmdb", "spawn", marks=pytest.mark.slow)]
)
def test_workers_read_what_the_training_process_reads(
    tmp_path: Path, dataset_folder: Path, data_section: MakeSection, kind: str, start_method: str
) -> None:
    source = WRITERS[kind](tmp_path / kind, dataset_folder)
    tokenizer = {"tokenizer": str(dataset_folder / "tokenizer")}

    def pixels(**changes: object) -> torch.Tensor:
        data = data_section(source, **tokenizer, **changes)
        dataset = PairDataset(data, "train", seed=1)
        ImageDataset(data, "train").read(0, None)  # the training process has read from the source before workers start
        order = Order(len(dataset), 8, seed=5)
        options = {"rank": 0, "world_size": 1, "first_step": 0, "last_step": 3, "seed": 5, "pin_memory": False}
        steps = train_steps(dataset, order, data, **options)  # type: ignore[arg-type]
        return torch.cat([batch["pixel_values"] for step in steps for batch in step.micro_batches])

    assert torch.equal(pixels(num_workers=2, worker_start_method=start_method), pixels())


def test_offsets_count_bytes(tmp_path: Path, dataset_folder: Path) -> None:
    """A byte-order mark and Windows line breaks shift what follows."""
    plain = open_split(str(write_tsv(tmp_path / "plain", dataset_folder)), "train")
    odd = open_split(str(write_tsv(tmp_path / "odd", dataset_folder, mark=b"\xef\xbb\xbf", line_break="\r\n")), "train")
    assert odd.fingerprint == plain.fingerprint
    for row in range(plain.num_images):
        assert odd.images.value("image", row) == plain.images.value("image", row)


def test_the_index_is_made_once_and_anew_where_a_file_changes(
    tmp_path: Path, dataset_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_tsv(tmp_path / "tsv", dataset_folder)
    first = open_split(str(source), "train").fingerprint
    assert capsys.readouterr().err.count("once; its index is kept in") == 1
    assert open_split(str(source), "train").fingerprint == first
    assert capsys.readouterr().err == ""
    lines = (source / "train_texts.jsonl").read_text().splitlines(keepends=True)
    (source / "train_texts.jsonl").write_text("".join(lines[:-1]))
    assert open_split(str(source), "train").fingerprint != first
    found = find_in_place(str(source))
    assert found is not None
    (index_folder(found, "train") / "index.json").write_text("{")
    assert open_split(str(source), "train").num_texts == len(lines) - 1


def test_bad_records_are_named_and_leave_no_index(tmp_path: Path, dataset_folder: Path, cache: Path) -> None:
    source = write_tsv(tmp_path / "tsv", dataset_folder)
    with (source / "train_imgs.tsv").open("a") as file:
        file.write("img0\tAAAA\nimg77\t****\n")
    with pytest.raises(
        UserError, match=r"2 bad records\. Repair the source, or convert it(.|\n)*'img0' came before"
    ) as error:
        open_split(str(source), "train")
    assert "train_imgs.tsv:32" in str(error.value)
    assert not [path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_a_split_that_is_not_there_is_named(tmp_path: Path, dataset_folder: Path) -> None:
    source = write_tsv(tmp_path / "tsv", dataset_folder)
    with pytest.raises(UserError, match="no split 'test'; it has train, valid"):
        open_split(str(source), "test")


def test_an_image_that_is_gone_is_an_unreadable_sample(
    tmp_path: Path, dataset_folder: Path, data_section: MakeSection
) -> None:
    source = write_tsv(tmp_path / "tsv", dataset_folder)
    data = data_section(source, tokenizer=str(dataset_folder / "tokenizer"))
    dataset = PairDataset(data, "train", seed=0)
    os.truncate(source / "train_imgs.tsv", 100)
    with pytest.raises(UnreadableSample, match="image 'img20': not in its place in the source"):
        dataset.read(40, 0)


def test_a_cache_that_can_not_be_written_is_said(
    tmp_path: Path, dataset_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_tsv(tmp_path / "tsv", dataset_folder)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match="Set XDG_CACHE_HOME"):
        open_split(str(source), "train")
