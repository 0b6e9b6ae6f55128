"""A scorer as a folder: `clip/`, which transformers loads, and the heads beside it."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from accel_train.config.scorer import ScorerConfig
from accel_train.errors import UserError
from accel_train.models.export import load_pretrained_weights, save_pretrained
from accel_train.models.scorer import CLIP, Scorer

CLIP_FOLDER = "clip"
HEADS = "heads.safetensors"


def is_scorer_folder(folder: str) -> bool:
    return (Path(folder) / CLIP_FOLDER).is_dir() and (Path(folder) / HEADS).is_file()


def save_scorer(model: Scorer, folder: str, config: ScorerConfig) -> None:
    """Writes the model with its whole, unsharded weights."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    save_pretrained(model.clip, str(path / CLIP_FOLDER), config.clip_config())
    heads = {name: value for name, value in model.state_dict().items() if not name.startswith(CLIP)}
    save_file({name: value.detach().cpu().contiguous() for name, value in heads.items()}, path / HEADS)


def load_scorer(model: Scorer, folder: str, config: ScorerConfig) -> None:
    """All weights of a folder that `save_scorer` wrote. Raises UserError where they don't fit."""
    load_clip(model, str(Path(folder) / CLIP_FOLDER), config)
    try:
        heads = load_file(Path(folder) / HEADS)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{Path(folder) / HEADS} can't be read. {error}") from error
    own = model.state_dict()
    try:
        model.load_state_dict({name: value for name, value in own.items() if name.startswith(CLIP)} | heads)
    except RuntimeError as error:
        raise UserError(f"{folder}: the heads do not fit the model of this configuration: {error}") from error


def load_clip(model: Scorer, folder: str, config: ScorerConfig) -> None:
    """The weights of a CLIP-like model's folder; the heads stay as they are."""
    load_pretrained_weights(model.clip, folder, config.clip_config())
