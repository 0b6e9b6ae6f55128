import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from accel_train.config.sequence_classification import LabelledTextData
from accel_train.data.dataset import UnreadableSample
from accel_train.data.labelled_texts import LabelledTextDataset
from accel_train.data.padding import Padding
from tests.labelled import write_dataset

MakeData = Callable[..., LabelledTextData]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("labelled") / "data")


@pytest.fixture
def make(folder: Path) -> MakeData:
    def make(**changes: object) -> LabelledTextData:
        values = {
            "path": str(folder),
            "tokenizer": "dataset:tokenizer",
            "max_text_length": 12,
            "global_batch_size": 8,
            "micro_batch_size": 4,
        }
        return LabelledTextData.model_validate(values | changes)

    return make


def test_columns_are_as_promised(make: MakeData) -> None:
    dataset = LabelledTextDataset(make(), "train", seed=0)
    assert len(dataset) == 90
    assert dataset.padding == Padding({"input_ids": 0, "attention_mask": 0}, limit=12)
    for row in range(20):
        sample = dataset.read(row, None)
        length = len(sample["input_ids"])
        assert sample["attention_mask"].tolist() == [1] * length
        assert sample["input_ids"][0] == 2 and sample["input_ids"][-1] == 3  # [CLS] and [SEP]
        assert 0 not in sample["input_ids"]
        assert sample["label"] == row % 3
        assert sample["sample_id"] == row
        assert {column.dtype for column in sample.values()} == {torch.int64}


def test_lengths_are_those_of_the_samples(make: MakeData) -> None:
    dataset = LabelledTextDataset(make(), "train", seed=0)
    lengths = dataset.lengths()
    assert lengths.dtype == np.int32
    assert lengths.tolist() == [len(dataset.read(row, 0)["input_ids"]) for row in range(90)]
    assert lengths.min() < 8 and lengths.max() == 12  # some are cut


def test_masked_tokens_depend_on_seed_epoch_and_row(make: MakeData) -> None:
    data = make(augmentation={"mask_tokens": 0.5})
    dataset = LabelledTextDataset(data, "train", seed=0)

    def ids(epoch: int | None, seed: int = 0) -> list[list[int]]:
        one = dataset if seed == 0 else LabelledTextDataset(data, "train", seed=seed)
        return [one.read(row, epoch)["input_ids"].tolist() for row in range(20)]

    mask_id = 4
    assert ids(1) == ids(1)
    assert len({str(ids(1)), str(ids(2)), str(ids(1, seed=5)), str(ids(None))}) == 4
    assert all(mask_id not in text for text in ids(None))
    share = np.mean([token == mask_id for text in ids(1) for token in text[1:-1]])
    assert 0.3 < share < 0.7


def test_what_has_no_tokens_is_unreadable(make: MakeData, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = LabelledTextDataset(make(), "train", seed=0)
    nothing = torch.zeros(12, dtype=torch.int64)
    monkeypatch.setattr(dataset._tokenizer, "encode", lambda *args, **options: (nothing, nothing))
    with pytest.raises(UnreadableSample, match="train: text '7' has no tokens"):
        dataset.read(7, None)


def test_pickles_for_spawned_workers(make: MakeData) -> None:
    dataset = LabelledTextDataset(make(pad_to_multiple_of=8), "valid", seed=0)
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.read(3, None)["input_ids"].tolist() == dataset.read(3, None)["input_ids"].tolist()
    assert copy.padding.multiple == 8
    assert copy.fingerprint == dataset.fingerprint != LabelledTextDataset(make(), "train", seed=0).fingerprint
