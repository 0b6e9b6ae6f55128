"""A split of rated images: what a row is, what is the same on every read, and damage that is named."""

import json
from pathlib import Path

import pytest
import torch

from accel_train.config.scorer import RatedData
from accel_train.data.dataset import UnreadableSample
from accel_train.data.rated_images import RatedImageDataset, open_rated_split
from accel_train.data.rated_writer import RatedSplitWriter
from accel_train.errors import UserError
from tests.rated import COLOURS, picture, write_dataset


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("rated") / "data", 40)


def data(folder: Path, **changes: object) -> RatedData:
    sizes = {"image_size": 24, "max_text_length": 8, "global_batch_size": 4, "micro_batch_size": 4}
    return RatedData.model_validate({"path": str(folder), "tokenizer": "dataset:tokenizer"} | sizes | changes)


def test_augmentation_is_a_function_of_seed_epoch_and_row(folder: Path) -> None:
    section = data(folder, augmentation={"horizontal_flip": 0.5, "crop_scale": [0.5, 1.0]})

    def pixels(seed: int, epoch: int | None) -> torch.Tensor:
        dataset = RatedImageDataset(section, "train", seed=seed, with_explanations=False)
        return torch.stack([dataset.read(row, epoch)["pixel_values"] for row in range(6)])

    assert torch.equal(pixels(0, 1), pixels(0, 1))
    assert not torch.equal(pixels(0, 1), pixels(0, 2))
    assert not torch.equal(pixels(0, 1), pixels(1, 1))
    assert torch.equal(pixels(0, None), pixels(1, None))


def test_equal_explanations_share_a_key_and_missing_ones_are_marked(folder: Path) -> None:
    dataset = RatedImageDataset(data(folder), "train", seed=0, with_explanations=True)
    texts = [dataset.split.samples.value("explanation", row) for row in range(len(dataset))]
    rows = [dataset.read(row, 0) for row in range(len(dataset))]
    assert [bool(row["has_explanation"]) for row in rows] == [text is not None for text in texts]
    assert dataset.split.num_explanations == sum(text is not None for text in texts) > 0
    for one, text in zip(rows, texts, strict=True):
        for other, another in zip(rows, texts, strict=True):
            assert (one["explanation_key"] == other["explanation_key"]) == (text == another)


def test_an_image_that_does_not_decode_is_named(tmp_path: Path, folder: Path) -> None:
    writer = RatedSplitWriter(tmp_path / "out" / "train")
    row = writer.add_image("broken.png", b"no image")
    writer.add_sample(row, "红色", {"quality": 0.5, "consistency": 1.0}, None)
    description = json.loads((folder / "dataset.json").read_text()) | {"splits": {"train": writer.close()}}
    (tmp_path / "out" / "dataset.json").write_text(json.dumps(description))
    section = data(tmp_path / "out", tokenizer=str(folder / "tokenizer"))
    dataset = RatedImageDataset(section, "train", seed=0, with_explanations=False)
    with pytest.raises(UnreadableSample, match=r"train: image 'broken.png': not an image"):
        dataset.read(0, None)


def test_the_fingerprint_is_of_everything_that_is_learnt(tmp_path: Path) -> None:
    def fingerprint(
        name: str, prompt: str = "红色", quality: float = 0.5, why: str | None = None, blur: float = 0
    ) -> str:
        writer = RatedSplitWriter(tmp_path / name)
        row = writer.add_image("a.png", picture(0, COLOURS["红色"], blur))
        writer.add_sample(row, prompt, {"quality": quality, "consistency": 1.0}, why)
        return str(writer.close()["fingerprint"])

    found = {
        fingerprint("1"),
        fingerprint("2", prompt="绿色"),
        fingerprint("3", quality=0.6),
        fingerprint("4", why="blur"),
        fingerprint("5", blur=2),
    }
    assert len(found) == 5 and fingerprint("6") in found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(task="contrastive"), "imported for the task contrastive, not for scorer"),
        (lambda d: d["splits"]["train"].update(num_samples=1), "dataset.json says 1"),
        (lambda d: d["splits"]["train"].pop("mean_quality"), "damaged"),
        (lambda d: d.pop("rating_ranges"), "damaged"),
        (lambda d: d["splits"].pop("train"), "no split 'train'; it has valid"),
    ],
    ids=["task", "rows", "means", "ranges", "split"],
)
def test_damage_is_found_when_a_split_is_opened(folder: Path, tmp_path: Path, change, message: str) -> None:  # type: ignore[no-untyped-def]
    description = json.loads((folder / "dataset.json").read_text())
    change(description)
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    for split in ("train", "valid"):
        (tmp_path / split).symlink_to(folder / split)
    with pytest.raises(UserError, match=message):
        open_rated_split(str(tmp_path), "train")
