"""CLIP-like models as a configuration asks for them: from a folder, a checkpoint file, or a named size."""

import copy
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PretrainedConfig

from accel_train.config.contrastive import ClipModelSection, ContrastiveConfig, is_checkpoint_file
from accel_train.errors import UserError
from accel_train.models import cn_clip, open_clip
from accel_train.models.clip_families import ARCHITECTURES, FAMILIES
from accel_train.models.contrastive_model import ContrastiveModel
from accel_train.models.one_tower import load_tower
from accel_train.models.overrides import make_config, merge
from accel_train.models.position_embeddings import fit_positions
from accel_train.models.pretrained import building_on_meta, load_model, load_strictly, read_architecture, read_config
from accel_train.models.sizes import SIZES
from accel_train.models.torch_files import read_weights

INPUT_SIZES = {"image_size", "patch_size", "max_position_embeddings", "vocab_size"}


def build_clip(config: ContrastiveConfig, section: ClipModelSection) -> ContrastiveModel:
    """A CLIP-like model with its weights; on the meta device without values. What became of them is in its `notes`."""
    if section.pretrained is None:
        return _from_size(config, section)
    source, weights = section.pretrained, None
    if is_checkpoint_file(source):
        saved, weights = _read_checkpoint_file(source, section)
    else:
        saved = _architecture_of_folder(source, section.type)
    architecture = _at_image_size(saved, config.data.image_size)
    _check_inputs(architecture, config, pretrained=True)
    ours, plain, _ = FAMILIES[architecture.model_type]
    model: ContrastiveModel
    if building_on_meta():
        model = _random(architecture, section)
    elif weights is None and architecture is saved:
        model = cast(ContrastiveModel, load_model(ours, source, saved, "model.pretrained", **_options(section)))
    else:
        if weights is None:
            weights = dict(load_model(plain, source, saved, "model.pretrained").state_dict())
        model = _random(architecture, section)
        model.notes += fit_positions(weights, model, source)
        load_strictly(model, weights, f"model.pretrained: the weights in {source}")
    model.set_up(config, random_weights=False)
    return model


def native_inputs(section: ClipModelSection) -> tuple[int, int]:
    """The image size in pixels and the longest text in tokens that the weights of `pretrained` were made for."""
    assert section.pretrained is not None
    if is_checkpoint_file(section.pretrained):
        saved, _ = _read_checkpoint_file(section.pretrained, section)
    else:
        saved = _architecture_of_folder(section.pretrained, section.type)
    return int(saved.vision_config.image_size), int(saved.text_config.max_position_embeddings)


def _read_checkpoint_file(path: str, section: ClipModelSection) -> tuple[PretrainedConfig, dict[str, Tensor]]:
    """Architecture and weights of a file that Chinese-CLIP's or open_clip's trainer wrote."""
    where = "model.pretrained"
    if section.type == "siglip":
        raise UserError(f"{where}: {path} is a file, and siglip is read from Hugging Face folders alone.")
    read = cn_clip.read if section.type == "chinese_clip" else open_clip.read
    return read(read_weights(path, where), section.config, path)


def _from_size(config: ContrastiveConfig, section: ClipModelSection) -> ContrastiveModel:
    """Random weights, with towers from elsewhere where the section names them."""
    architecture = _named_size(config, section)
    _check_inputs(architecture, config, pretrained=False)
    model = _random(architecture, section)
    knows_temperature = False
    for tower, source in (("vision", section.vision_pretrained), ("text", section.text_pretrained)):
        if source is not None and not building_on_meta():
            knows_temperature |= load_tower(model, tower, source, f"model.{tower}_pretrained")
    model.set_up(config, random_weights=not knows_temperature)
    return model


def _random(architecture: PretrainedConfig, section: ClipModelSection) -> ContrastiveModel:
    ours, _, _ = FAMILIES[architecture.model_type]
    try:
        model: ContrastiveModel = ours._from_config(architecture, dtype=torch.float32, **_options(section))
    except (ImportError, ValueError) as error:
        raise UserError(f"model.attention is {section.attention}, which can't be used here. {error}") from error
    return model


def _options(section: ClipModelSection) -> dict[str, Any]:
    return {"attn_implementation": section.attention} if section.attention else {}


def _named_size(config: ContrastiveConfig, section: ClipModelSection) -> PretrainedConfig:
    sizes = SIZES[section.type]
    if section.size not in sizes:
        raise UserError(f"model.size is {section.size!r}; {section.type} has {', '.join(sizes)}.")
    size = sizes[section.size]
    is_resnet = "depths" in size["vision_config"]
    config_class = FAMILIES["chinese_clip_resnet" if is_resnet else section.type][2]
    settings = merge(size, section.config, config_class(), "model.config")
    settings["vision_config"] = {"image_size": config.data.image_size} | settings["vision_config"]
    return make_config(config_class, settings, "model.config")


def _architecture_of_folder(folder: str, model_type: str) -> PretrainedConfig:
    found = read_architecture(folder, "model.pretrained")["model_type"]
    if found not in ARCHITECTURES[model_type]:
        raise UserError(f"model.pretrained: {folder} holds a {found} model, but model.type is {model_type}.")
    config = read_config(folder, "model.pretrained", FAMILIES[found][2])
    for tower in ("vision_config", "text_config"):
        for key in INPUT_SIZES & vars(vars(config)[tower]).keys():
            value = vars(vars(config)[tower])[key]
            if type(value) is not int or value < 1:
                raise UserError(f"model.pretrained: {folder}/config.json: {tower}.{key} is {value!r}, and no size.")
    return config


def _at_image_size(architecture: PretrainedConfig, image_size: int) -> PretrainedConfig:
    """The same architecture, or a copy of it for another image size."""
    if architecture.vision_config.image_size == image_size:
        return architecture
    resized = copy.deepcopy(architecture)
    resized.vision_config.image_size = image_size
    return resized


def _check_inputs(architecture: PretrainedConfig, config: ContrastiveConfig, *, pretrained: bool) -> None:
    """Image size and text length against what the model can take."""
    image, text, data = architecture.vision_config, architecture.text_config, config.data
    if image.image_size != data.image_size:
        raise UserError(
            f"data.image_size is {data.image_size}, but the model takes images of {image.image_size} px. "
            f"Set data.image_size={image.image_size}."
        )
    if data.image_size % image.patch_size:
        raise UserError(f"data.image_size is {data.image_size}, not a multiple of the patch size {image.patch_size}.")
    longest = text.max_position_embeddings
    if data.max_text_length > longest:
        raise UserError(
            f"data.max_text_length is {data.max_text_length}, but the model reads {longest} tokens at most."
        )
    if pretrained and architecture.model_type == "siglip" and data.max_text_length != longest:
        raise UserError(
            f"data.max_text_length is {data.max_text_length}, but SigLIP takes a text's feature from its last position "
            f"and was trained with {longest}. Set data.max_text_length={longest}."
        )
