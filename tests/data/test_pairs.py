from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from accel_train.config.contrastive import PairData
from accel_train.data.dataset import UnreadableSample
from accel_train.data.padding import join
from accel_train.data.pairs import ImageDataset, PairDataset, TextDataset
from accel_train.data.transforms import evaluation_image
from accel_train.errors import UserError

MakeSection = Callable[..., PairData]
AUGMENTED = {"augmentation": {"crop_scale": [0.4, 1.0], "horizontal_flip": 0.5, "mask_tokens": 0.5}}


def test_a_row_is_a_pair(dataset_folder: Path, data_section: MakeSection) -> None:
    data = data_section(dataset_folder)
    dataset = PairDataset(data, "train", seed=0)
    assert len(dataset) == 59
    row = dataset.read(8, 0)
    split = dataset.split
    assert row["sample_id"] == 8
    assert row["image_key"] == split.images.value("image_key", 4)
    assert row["text_key"] == split.texts.value("text_key", 8)
    assert torch.equal(row["pixel_values"], evaluation_image(split.images.value("image", 4), 16, "squash"))
    assert torch.equal(row["input_ids"], TextDataset(data, "train").read(8, None)["input_ids"])


def test_captions_are_as_long_as_they_are(dataset_folder: Path, data_section: MakeSection) -> None:
    data = data_section(dataset_folder, pad_to_multiple_of=3)
    texts, whole = TextDataset(data, "valid"), TextDataset(data, "valid", whole_length=True)
    rows, padded = ([dataset.read(row, None) for row in range(13)] for dataset in (texts, whole))
    lengths = [len(row["input_ids"]) for row in rows]
    assert min(lengths) < max(lengths) and all(len(row["input_ids"]) == 8 for row in padded)
    assert all(row["attention_mask"].all() for row in rows)
    for length, row, other in zip(lengths, rows, padded, strict=True):
        assert torch.equal(row["input_ids"], other["input_ids"][:length]) and other["attention_mask"].sum() == length
    batch = join([{name: value[None] for name, value in row.items()} for row in rows], texts.padding)
    assert batch["input_ids"].shape == (13, min(-(-max(lengths) // 3) * 3, 8))
    assert torch.equal(batch["attention_mask"].sum(1), torch.tensor(lengths))


def test_bytes_of_captions(dataset_folder: Path, data_section: MakeSection) -> None:
    dataset = PairDataset(data_section(dataset_folder), "train", seed=0)
    texts, rows = dataset.split.texts, dataset.split.pairs.column("text_row")
    assert dataset.caption_bytes().tolist() == [len(texts.value("text", int(row)).encode()) for row in rows]
    assert dataset.caption_bytes().dtype == "int32" and len(set(dataset.caption_bytes().tolist())) > 3


def test_shared_images_and_captions_share_keys(dataset_folder: Path, data_section: MakeSection) -> None:
    dataset = PairDataset(data_section(dataset_folder), "train", seed=0)
    rows = [dataset.read(index, None) for index in range(9)]
    assert rows[0]["image_key"] == rows[1]["image_key"] != rows[2]["image_key"]
    assert rows[0]["text_key"] == rows[7]["text_key"] == rows[8]["text_key"] != rows[1]["text_key"]  # 红色的花, thrice


def test_augmentation_is_a_function_of_seed_epoch_and_row(dataset_folder: Path, data_section: MakeSection) -> None:
    data = data_section(dataset_folder, **AUGMENTED)
    first, same, other = (PairDataset(data, "train", seed=seed) for seed in (1, 1, 2))
    for name in ("pixel_values", "input_ids"):
        pile = [torch.cat([dataset.read(row, epoch)[name].flatten() for row in range(20)]) for dataset, epoch in
                ((first, 3), (same, 3), (other, 3), (first, 4), (first, None), (other, None))]  # fmt: skip
        assert torch.equal(pile[0], pile[1])
        assert not torch.equal(pile[0], pile[2]) and not torch.equal(pile[0], pile[3])
        assert torch.equal(pile[4], pile[5]) and not torch.equal(pile[0], pile[4])


def test_auto_augment_is_for_training_alone(dataset_folder: Path, data_section: MakeSection) -> None:
    plain = PairDataset(data_section(dataset_folder), "train", seed=0)
    augmented = PairDataset(data_section(dataset_folder, augmentation={"auto_augment": True}), "train", seed=0)

    def changed(epoch: int | None) -> int:
        pixels = [
            (plain.read(row, epoch)["pixel_values"], augmented.read(row, epoch)["pixel_values"]) for row in range(20)
        ]
        return sum(not torch.equal(before, after) for before, after in pixels)

    assert changed(None) == 0 and changed(1) >= 10


def test_evaluation_sets_hold_each_image_and_text_once(dataset_folder: Path, data_section: MakeSection) -> None:
    data = data_section(dataset_folder, **AUGMENTED)
    images, texts = ImageDataset(data, "valid"), TextDataset(data, "valid")
    assert (len(images), len(texts)) == (7, 13)
    encoded = images.split.images.value("image", 6)
    assert torch.equal(images.read(6, None)["pixel_values"], evaluation_image(encoded, 16, "squash"))
    assert images.read(6, None)["sample_id"] == 6 and texts.read(12, None)["sample_id"] == 12


def test_fingerprints_tell_splits_and_sets_apart(dataset_folder: Path, data_section: MakeSection) -> None:
    data = data_section(dataset_folder)
    prints = [
        PairDataset(data, "train", seed=0).fingerprint,
        PairDataset(data, "valid", seed=0).fingerprint,
        ImageDataset(data, "valid").fingerprint,
        TextDataset(data, "valid").fingerprint,
    ]
    assert len(set(prints)) == 4
    assert PairDataset(data, "train", seed=9).fingerprint == prints[0]


def test_unreadable_images_are_named(damaged_dataset_folder: Path, data_section: MakeSection) -> None:
    data = data_section(damaged_dataset_folder)
    with pytest.raises(UnreadableSample, match="train: image 'img3': not an image"):
        PairDataset(data, "train", seed=0).read(6, 0)
    with pytest.raises(UnreadableSample, match="train: image 'img5'"):
        ImageDataset(data, "train").read(5, None)


def test_a_dataset_without_a_tokenizer_says_what_to_do(dataset_folder: Path, data_section: MakeSection) -> None:
    (dataset_folder / "tokenizer").rename(dataset_folder / "elsewhere")
    with pytest.raises(UserError, match="holds no tokenizer"):
        TextDataset(data_section(dataset_folder), "valid")
    moved = data_section(dataset_folder, tokenizer=str(dataset_folder / "elsewhere"))
    assert TextDataset(moved, "valid", whole_length=True).read(0, None)["input_ids"].shape == (8,)
