"""Rules of the task `scorer`, each with the line a user reads."""

from pathlib import Path

import pytest

from accel_train.config.load import load_config
from accel_train.config.scorer import ScorerConfig
from accel_train.errors import UserError

VALID = """\
run_dir: runs/test
max_steps: 10
task: scorer
model:
  clip: {type: clip, size: tiny}
data:
  path: data
  tokenizer: vocab.txt
  global_batch_size: 8
  micro_batch_size: 4
optimizer:
  towers:
    - {name: all, layers: ['.'], lr: 1e-3}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "scorer.yaml"
    path.write_text(VALID, encoding="utf-8")
    return path


def load(file: Path, *overrides: str) -> ScorerConfig:
    config = load_config(file, overrides)
    assert isinstance(config, ScorerConfig)
    return config


def test_defaults_are_those_of_residual_learning(file: Path) -> None:
    config = load(file)
    assert config.model.residual is not None and config.model.refinement is None
    assert (config.model.residual.scale_quality, config.model.residual.scale_consistency) == (0.2, 0.2)
    assert (config.model.hidden_quality, config.model.hidden_consistency, config.model.dropout) == (128, 256, 0.1)
    weights = (config.loss.quality_weight, config.loss.consistency_weight, config.loss.explanation_weight)
    assert weights == (0.5, 0.5, 0.1)


def test_a_refinement_has_the_size_of_the_guide(file: Path) -> None:
    refinement = load(file, "model.residual=null", "model.refinement={}").model.refinement
    assert refinement is not None
    assert (refinement.num_layers, refinement.num_heads, refinement.width) == (4, 8, 256)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.refinement={}"], "model.refinement: .* both at once contradict each other. Set one of them to null."),
        (
            ["model.residual=null", "model.refinement.width=20", "model.refinement.num_heads=8"],
            r"model.refinement.width: 20 is not a multiple of model.refinement.num_heads \(8\)",
        ),
        (["model.residual=null", "model.hidden_quality=7"], "model.hidden_quality: 7 would be ignored"),
        (["model.residual=null", "model.quality_layers=2"], "model.quality_layers: 2 would be ignored"),
        (["loss.smooth_l1_beta=0.5"], "loss.smooth_l1_beta: 0.5 would be ignored, since loss.name is mse"),
        (["loss.quality_weight=0", "loss.consistency_weight=0"], "so no score would be learnt"),
        (["data.augmentation.crop_scale=[0.9, 0.8]"], "data.augmentation.crop_scale"),
        (["data.augmentation.auto_augment=true"], "auto_augment: no such key"),
        (["model.clip.pretrained=folder"], "model.clip.pretrained: pretrained is 'folder' and size is 'tiny'"),
        (["data.tokenizer=''"], "data.tokenizer: found ''; it must not be empty"),
        (["model.dropout=1.0"], "model.dropout"),
        (["loss.label_smoothing=1.0"], "loss.label_smoothing"),
    ],
)
def test_contradictions(file: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(file, *overrides)


def test_the_clip_in_it_is_a_contrastive_run_with_the_same_inputs(file: Path) -> None:
    config = load(file, "data.image_size=32", "data.max_text_length=9", "data.augmentation.horizontal_flip=0.5")
    clip = config.clip_config()
    assert (clip.data.image_size, clip.data.max_text_length, clip.data.path) == (32, 9, "data")
    assert clip.model == config.model.clip


def test_the_temperature_is_fixed_where_nothing_uses_it(file: Path) -> None:
    assert load(file).clip_config().model.learn_temperature
    assert not load(file, "loss.explanation_weight=0").clip_config().model.learn_temperature
