"""One tower of a CLIP-like model from a checkpoint of its own, as the original trainer starts from CLIP and RoBERTa."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import AutoModel, PretrainedConfig

from accel_train.config.contrastive import is_checkpoint_file
from accel_train.errors import UserError
from accel_train.models import cn_clip, open_clip
from accel_train.models.clip_families import FAMILIES
from accel_train.models.contrastive_model import ContrastiveModel
from accel_train.models.name_map import Renamed, clip_vision, to_ours
from accel_train.models.position_embeddings import fit_positions
from accel_train.models.pretrained import TASK_HEADS, load_model, load_strictly, read_architecture, read_config
from accel_train.models.torch_files import read_weights

SOURCES = {
    ("chinese_clip", "vision"): ("chinese_clip", "clip"),
    ("chinese_clip", "text"): ("chinese_clip", "chinese_clip_resnet", "bert"),
    ("chinese_clip_resnet", "vision"): ("chinese_clip_resnet",),
    ("chinese_clip_resnet", "text"): ("chinese_clip", "chinese_clip_resnet", "bert"),
    ("clip", "vision"): ("clip", "chinese_clip"),
    ("clip", "text"): ("clip",),
    ("siglip", "vision"): ("siglip",),
    ("siglip", "text"): ("siglip",),
}
"""Folders that hold a tower of each architecture, by the model_type of their config.json."""

UNSEEN = ("hidden_act", "num_attention_heads")
"""Settings that change what weights compute and that no shape shows."""

PROJECTIONS = {"vision": "visual_projection.", "text": "text_projection."}


def load_tower(model: ContrastiveModel, tower: str, source: str, where: str) -> bool:
    """Puts the weights of a folder or file into the `vision` or `text` tower of a model, before its `set_up`.

    The tower's projection comes along where the source has one, and with the image tower of CLIP or Chinese-CLIP the
    temperature; says whether it did. Raises UserError where the weights don't fit.
    """
    architecture: Any = model.config
    if is_checkpoint_file(source):
        weights = _of_file(architecture, tower, source, where)
    else:
        weights = _of_folder(architecture, tower, source, where)
    has_scale = tower == "vision" and architecture.model_type != "siglip" and "logit_scale" in weights
    taken = (f"{tower}_model.", PROJECTIONS[tower], *(("logit_scale",) if has_scale else ()))
    weights = {name: value for name, value in weights.items() if name.startswith(taken)}
    notes = fit_positions(weights, model, source)
    others = {name: value for name, value in model.state_dict().items() if not name.startswith(f"{tower}_model.")}
    load_strictly(model, others | weights, f"{where}: the weights in {source}")
    model.notes += notes
    return has_scale


def _of_folder(architecture: PretrainedConfig, tower: str, folder: str, where: str) -> dict[str, Tensor]:
    found = read_architecture(folder, where)["model_type"]
    known = SOURCES[architecture.model_type, tower]
    if found not in known:
        raise UserError(f"{where}: {folder} holds a {found} model; this tower is read from {', '.join(known)}.")
    if found == "bert":
        config = read_config(folder, where)
        _check_unseen(config, architecture.text_config, folder, where)
        backbone = load_model(AutoModel, folder, config, where, ignore=(*TASK_HEADS, "pooler."))
        state = backbone.state_dict().items()
        return {f"text_model.{name}": value for name, value in state if not name.startswith("pooler.")}
    _, plain, config_class = FAMILIES[found]
    config = read_config(folder, where, config_class)
    ours, theirs = (one.vision_config if tower == "vision" else one.text_config for one in (architecture, config))
    _check_unseen(theirs, ours, folder, where)
    return dict(load_model(plain, folder, config, where).state_dict())


def _check_unseen(theirs: PretrainedConfig, ours: PretrainedConfig, folder: str, where: str) -> None:
    before, after = theirs.to_dict(), ours.to_dict()
    for key in UNSEEN:
        if before.get(key) != after.get(key):
            raise UserError(
                f"{where}: {folder} was trained with {key} {before.get(key)!r}, but this model has {after.get(key)!r}. "
                "Change it by model.config."
            )


def _of_file(architecture: PretrainedConfig, tower: str, path: str, where: str) -> dict[str, Tensor]:
    if architecture.model_type == "siglip":
        raise UserError(f"{where}: {path} is a file, and siglip is read from Hugging Face folders alone.")
    weights = read_weights(path, where)
    if tower == "vision":
        taken, table = _vision_of_file(cn_clip.plain_layout(weights), architecture)
    elif architecture.model_type == "clip":
        weights = open_clip.plain_layout(weights)
        table = open_clip.clip_text(architecture.text_config.num_hidden_layers)
        taken = {name: value for name, value in weights.items() if not name.startswith(("visual.", "logit_"))}
    else:
        taken, table = _bert_of_file(weights, architecture)
    return to_ours(taken, table, f"{where}: {path}")


def _vision_of_file(
    weights: Mapping[str, Tensor], architecture: PretrainedConfig
) -> tuple[dict[str, Tensor], list[Renamed]]:
    taken = {name: value for name, value in weights.items() if name.startswith("visual.") or name == "logit_scale"}
    settings = architecture.vision_config.to_dict()
    table = cn_clip.resnet(settings["depths"]) if "depths" in settings else clip_vision(settings["num_hidden_layers"])
    if "logit_scale" in taken:
        table = [*table, Renamed("logit_scale", ("logit_scale",))]
    return taken, table


def _bert_of_file(
    weights: Mapping[str, Tensor], architecture: PretrainedConfig
) -> tuple[dict[str, Tensor], list[Renamed]]:
    """BERT's own files name their parts `bert.`, or nothing, and the oldest call a norm's weight gamma."""
    if "embeddings.word_embeddings.weight" in weights:
        weights = {f"bert.{name}": value for name, value in weights.items()}
    renamed = {
        name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias"): value
        for name, value in cn_clip.plain_layout(weights).items()
    }
    table = cn_clip.bert(architecture.text_config.num_hidden_layers)
    if "text_projection" in renamed:
        table = [*table, Renamed("text_projection", ("text_projection.weight",), transposed=True)]
    return {name: value for name, value in renamed.items() if name.startswith(("bert.", "text_projection"))}, table
