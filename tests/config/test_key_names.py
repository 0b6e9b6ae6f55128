import pytest

from accel_train.config.contrastive import (
    Augmentation,
    Backbone,
    ClipModelSection,
    ContrastiveConfig,
    DualEncoderSection,
    PairData,
)
from accel_train.config.key_names import ALIASES, all_keys, nearest_keys, section_at, sections_in
from accel_train.config.schema import EarlyStopping, Section, Tower


def test_every_section_is_found_at_its_path() -> None:
    clip, dual = {"model": {"type": "clip"}}, {"model": {"type": "dual_encoder", "image": {}}}
    assert section_at((), {}, ContrastiveConfig) is ContrastiveConfig
    assert section_at(("data", "augmentation"), {"data": {"augmentation": {}}}, ContrastiveConfig) is Augmentation
    assert section_at(("optimizer", "towers", 0), {"optimizer": {"towers": [{}]}}, ContrastiveConfig) is Tower
    assert (
        section_at(("evaluation", "early_stopping"), {"evaluation": {"early_stopping": {}}}, ContrastiveConfig)
        is EarlyStopping
    )
    assert section_at(("model",), clip, ContrastiveConfig) is ClipModelSection
    assert section_at(("model",), dual, ContrastiveConfig) is DualEncoderSection
    assert section_at(("model", "image"), dual, ContrastiveConfig) is Backbone


def test_sections_of_a_type() -> None:
    assert sections_in(list[Tower]) == [Tower]
    assert sections_in(EarlyStopping | None) == [EarlyStopping]
    assert sections_in(ClipModelSection | DualEncoderSection) == [ClipModelSection, DualEncoderSection]
    assert sections_in(dict[str, int]) == []


def test_all_keys_descend_into_every_kind_of_section() -> None:
    keys = set(all_keys(ContrastiveConfig))
    assert {"seed", "data.path", "optimizer.towers.*.lr", "model.image.pretrained", "model.size"} <= keys
    assert {"evaluation.early_stopping.patience", "data.augmentation.crop_scale"} <= keys


def test_aliases_lead_to_other_keys() -> None:
    words = {path.rpartition(".")[2] for path in all_keys(ContrastiveConfig)}
    for alias, meant in ALIASES.items():
        assert set(meant) <= words, alias
        assert alias not in meant


@pytest.mark.parametrize(
    ("key", "section", "where", "nearest"),
    [
        ("epochs", ContrastiveConfig, "", ["num_epochs"]),
        ("Max-Steps", ContrastiveConfig, "", ["max_steps"]),
        ("batch_size", ContrastiveConfig, "", ["data.global_batch_size"]),
        ("batch_size", PairData, "data", ["data.global_batch_size"]),
        ("micro_batchsize", PairData, "data", ["data.micro_batch_size"]),
        ("learning_rate", Tower, "optimizer.towers.text", ["optimizer.towers.text.lr"]),
        ("lr", ContrastiveConfig, "", ["optimizer.towers.*.lr"]),
        ("weight_decay", ContrastiveConfig, "", ["optimizer.towers.*.weight_decay", "optimizer.weight_decay"]),
        ("vision", DualEncoderSection, "model", ["model.image"]),
        ("image", ClipModelSection, "model", []),  # a key of this place under another type only
        ("qqqq", PairData, "data", []),
    ],
)
def test_nearest_keys(key: str, section: type[Section], where: str, nearest: list[str]) -> None:
    assert sorted(nearest_keys(key, section, where, ContrastiveConfig)) == sorted(nearest)
