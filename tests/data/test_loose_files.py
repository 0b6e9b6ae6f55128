"""Folders of images and files of texts are found whole, in one order, and what is wrong is named."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from accel_train.config.contrastive import PairData
from accel_train.data.dataset import UnreadableSample
from accel_train.data.loose_files import ImageFiles, TextLines, find_images, read_lines
from accel_train.data.pairs import caption_tokenizer
from accel_train.data.transforms import evaluation_image
from accel_train.errors import UserError
from tests.data.conftest import encoded_image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    for number, name in enumerate(["b.png", "a/2.PNG", "a/10.jpg", "a.png", ".hidden/x.png", "a/.y.png", "a/note.txt"]):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(encoded_image(number))
    return root


def test_images_are_found_at_any_depth_in_the_order_of_their_paths(folder: Path) -> None:
    assert find_images(str(folder)) == ["a.png", "a/10.jpg", "a/2.PNG", "b.png"]


def test_an_image_file_reads_as_an_imported_image(folder: Path, data_section: Callable[..., PairData]) -> None:
    names = find_images(str(folder))
    dataset = ImageFiles(str(folder), names, data_section(folder))
    assert len(dataset) == 4
    found = dataset.read(3, None)
    assert torch.equal(found["pixel_values"], evaluation_image(encoded_image(0), 16, "squash"))
    assert found["sample_id"] == 3


def test_a_bad_image_is_named(folder: Path, data_section: Callable[..., PairData]) -> None:
    (folder / "b.png").write_bytes(b"no image")
    dataset = ImageFiles(str(folder), ["a.png", "b.png"], data_section(folder))
    (folder / "a.png").unlink()
    with pytest.raises(UnreadableSample, match=r"b\.png: not an image"):
        dataset.read(1, None)
    with pytest.raises(UnreadableSample, match=r"a\.png: it can't be read \(No such file"):
        dataset.read(0, None)


def test_the_fingerprint_notices_another_file(folder: Path, data_section: Callable[..., PairData]) -> None:
    def fingerprint(*names: str) -> str:
        return ImageFiles(str(folder), list(names), data_section(folder)).fingerprint

    before = fingerprint("a.png", "b.png")
    assert fingerprint("a.png", "b.png") == before
    assert fingerprint("a.png") != before
    os.utime(folder / "b.png", (1, 1))
    assert fingerprint("a.png", "b.png") != before


def test_no_images_and_no_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no image files"):
        find_images(str(tmp_path))
    with pytest.raises(UserError, match="is not a folder with images"):
        find_images(str(tmp_path / "absent"))


def test_texts_are_tokenised_as_captions(dataset_folder: Path, data_section: Callable[..., PairData]) -> None:
    tokenizer = caption_tokenizer(data_section(dataset_folder))
    dataset = TextLines(["一只猫", "汽车"], tokenizer)
    input_ids, attention_mask = tokenizer.encode("汽车")
    found = dataset.read(1, None)
    assert torch.equal(found["input_ids"], input_ids)
    assert torch.equal(found["attention_mask"], attention_mask)
    assert dataset.fingerprint != TextLines(["汽车", "一只猫"], tokenizer).fingerprint


def test_a_file_of_texts_has_one_a_line(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_bytes("\ufeff一只猫\r\nred flower\n".encode())
    assert read_lines(str(path)) == ["一只猫", "red flower"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"one\n\nthree\n", r"texts\.txt:2: an empty line"),
        (b"one\n\xff\n", r"texts\.txt:2: not UTF-8"),
        (b"", r"texts\.txt: the file is empty"),
    ],
)
def test_a_file_without_a_text_on_each_line_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "texts.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_lines(str(path))
    with pytest.raises(UserError, match=r"absent: can't be read"):
        read_lines(str(tmp_path / "absent"))
