"""Folders that transformers loads, and weights from such folders into a model that exists already."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel

from accel_train.config.contrastive import ContrastiveConfig, DualEncoderSection, PairData, is_checkpoint_file
from accel_train.errors import UserError
from accel_train.models import cn_clip, open_clip
from accel_train.models.clip_families import ARCHITECTURES, FAMILIES
from accel_train.models.contrastive_model import ContrastiveModel
from accel_train.models.dual_encoder import DualEncoder
from accel_train.models.position_embeddings import fit_positions
from accel_train.models.pretrained import TASK_HEADS, load_model, load_strictly, read_architecture, read_config
from accel_train.models.torch_files import read_weights

DUAL_ENCODER = "accel_train_dual_encoder"
HEADS = "heads.safetensors"
TOWERS = {"vision_model": "image", "text_model": "text"}
"""Folder of each backbone in a dual encoder's export."""

TEACHER_PROJECTION = "teacher_projection"
"""The map to a teacher's features serves training alone, and no export holds it."""

BICUBIC = 3
"""Pillow's number for the filter of our transform."""

IMAGE_PROCESSORS = {
    "chinese_clip": "ChineseCLIPImageProcessor",
    "clip": "CLIPImageProcessor",
    "siglip": "SiglipImageProcessor",
    "dual_encoder": "CLIPImageProcessor",
}


def save_pretrained(model: ContrastiveModel, folder: str, config: ContrastiveConfig) -> None:
    """Writes the model with its whole, unsharded weights.

    CLIP-like models: what the plain class of transformers loads, logit_scale 0-d again. A logit_bias that the plain class
    lacks is left out: it moves all similarities alike. Dual encoders: `image/` and `text/` for AutoModel, the heads in
    heads.safetensors, and a config.json that says how they belong together. Both with an image processor's JSON.
    """
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    if isinstance(model, DualEncoder):
        _save_dual_encoder(model, path, config)
    else:
        _save_plain(model, path)
    processor = image_processor(config.data, IMAGE_PROCESSORS[config.model.type])
    _write_json(path / "preprocessor_config.json", processor)


def load_pretrained_weights(
    model: ContrastiveModel, source: str, config: ContrastiveConfig, where: str = "initialize_from"
) -> None:
    """Weights from elsewhere into a model of the same architecture.

    source: a folder that `save_pretrained` (or transformers) wrote, or a checkpoint file of Chinese-CLIP or open_clip.
    `where` is the key that named it. An explicit model.temperature of the run stays in force. Position embeddings of
    another image size are resized, which the model's `notes` then say.
    """
    if isinstance(model, DualEncoder):
        state = _read_dual_encoder(model, Path(source), where)
    elif is_checkpoint_file(source):
        state = _read_file(model, source, config.model.type, where)
    else:
        state = _read_plain(source, config.model.type, where)
    own = model.state_dict()
    kept = {"logit_scale"} if config.model.temperature is not None else set()
    kept |= {"logit_bias", f"{TEACHER_PROJECTION}.weight"} - state.keys()
    state |= {name: own[name] for name in kept & own.keys()}
    if "logit_bias" not in own:
        state.pop("logit_bias", None)
    notes = fit_positions(state, model, source)
    load_strictly(model, state, f"{where}: the weights in {source}")
    model.notes += notes


def image_processor(data: PairData, kind: str) -> dict[str, Any]:
    """preprocessor_config.json for transformers: what our transform does to an image."""
    size = data.image_size
    square = {"height": size, "width": size}
    cropping = data.resize == "crop"
    return {
        "image_processor_type": kind,
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": size} if cropping else square,
        "resample": BICUBIC,
        "do_center_crop": cropping,
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(data.image_mean),
        "image_std": list(data.image_std),
    }


def _save_plain(model: ContrastiveModel, path: Path) -> None:
    architecture: Any = model.config
    plain_class = FAMILIES[architecture.model_type][1]
    with torch.device("meta"):
        plain = plain_class(architecture)
    shapes = {name: value.shape for name, value in plain.state_dict().items()}
    state = model.state_dict()
    weights = {name: state[name].detach().cpu().reshape(shape) for name, shape in shapes.items()}
    plain.save_pretrained(path, state_dict=weights)


def _save_dual_encoder(model: DualEncoder, path: Path, config: ContrastiveConfig) -> None:
    for attribute, name in TOWERS.items():
        backbone: Any = model.get_submodule(attribute)
        backbone.save_pretrained(path / name)
    assert isinstance(config.model, DualEncoderSection)
    _write_json(
        path / "config.json",
        {
            "model_type": DUAL_ENCODER,
            "projection_dim": config.model.projection_dim,
            "text_pooling": config.model.text_pooling,
            "max_text_length": config.data.max_text_length,
        },
    )
    save_file({name: value.detach().cpu().contiguous() for name, value in _heads(model).items()}, path / HEADS)


def _heads(model: DualEncoder) -> dict[str, Tensor]:
    elsewhere = (*TOWERS, TEACHER_PROJECTION)
    return {name: value for name, value in model.state_dict().items() if not name.startswith(elsewhere)}


def _read_dual_encoder(model: DualEncoder, path: Path, where: str) -> dict[str, Tensor]:
    if not (path / "config.json").is_file() or not (path / HEADS).is_file():
        raise UserError(f"{where}: {path} is not a dual encoder's export: it lacks config.json or {HEADS}.")
    state = load_file(path / HEADS)
    for attribute, name in TOWERS.items():
        folder = str(path / name)
        config = read_config(folder, where)
        backbone = load_model(AutoModel, folder, config, where, ignore=(*TASK_HEADS, "pooler."))
        # A pooler that the model dropped was not saved either; transformers has made a random one.
        own = model.get_submodule(attribute).state_dict().keys()
        weights = backbone.state_dict().items()
        state |= {f"{attribute}.{key}": value for key, value in weights if key in own or not key.startswith("pooler.")}
    return state


def _read_plain(folder: str, model_type: str, where: str) -> dict[str, Tensor]:
    found = read_architecture(folder, where)["model_type"]
    if found not in ARCHITECTURES[model_type]:
        raise UserError(f"{where}: {folder} holds a {found} model, but model.type is {model_type}.")
    _, plain_class, config_class = FAMILIES[found]
    config = read_config(folder, where, config_class)
    plain: nn.Module = load_model(plain_class, folder, config, where)
    return dict(plain.state_dict())


def _read_file(model: ContrastiveModel, path: str, model_type: str, where: str) -> dict[str, Tensor]:
    if model_type not in ("chinese_clip", "clip"):
        raise UserError(f"{where}: {path} is a file, and {model_type} is read from Hugging Face folders alone.")
    read_into = cn_clip.read_into if model_type == "chinese_clip" else open_clip.read_into
    architecture: Any = model.config
    return read_into(architecture, read_weights(path, where), f"{where}: {path}")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
