"""A frozen teacher: a contrastive model from a folder or a checkpoint file, with its own image size and normalisation."""

from pathlib import Path
from typing import Any, Literal

import torch

from accel_train.config.contrastive import (
    Backbone,
    ClipModelSection,
    ContrastiveConfig,
    DualEncoderSection,
    LossSection,
    PairData,
    is_checkpoint_file,
)
from accel_train.config.inputs import ImageInput
from accel_train.errors import UserError
from accel_train.json_text import read_json
from accel_train.models.build import build_contrastive_model
from accel_train.models.clip import native_inputs
from accel_train.models.clip_families import ARCHITECTURES
from accel_train.models.contrastive_model import ContrastiveModel
from accel_train.models.export import DUAL_ENCODER, load_pretrained_weights
from accel_train.models.pretrained import building_on_meta, read_architecture
from accel_train.models.torch_files import read_weights

WHERE = "distillation.teacher"


def teacher_config(config: ContrastiveConfig, *, reads_texts: bool) -> ContrastiveConfig:
    """The configuration under which the run's teacher is built, with its own image size, normalisation and text length.

    reads_texts: the teacher is to read the run's captions, so it must take them at the run's length.
    Raises UserError that names distillation.teacher.
    """
    assert config.distillation is not None and config.distillation.teacher is not None
    source = config.distillation.teacher
    changes: dict[str, Any]
    if is_checkpoint_file(source):
        kind: Literal["chinese_clip", "clip"] = "clip"
        if any(name.startswith("bert.") for name in read_weights(source, WHERE)):
            kind = "chinese_clip"
        section: ClipModelSection | DualEncoderSection = ClipModelSection(type=kind, pretrained=source)
        changes = {"image_mean": _default("image_mean"), "image_std": _default("image_std")}
    else:
        section = _section_of_folder(source)
        changes = _normalisation(source, config.data)
    if isinstance(section, ClipModelSection):
        image_size, text_length = native_inputs(section)
    else:
        image_size, text_length = _dual_encoder_inputs(source)
    changes |= {"image_size": image_size}
    if not reads_texts:
        changes |= {"max_text_length": text_length}
    section = section.model_copy(update={"max_logit_scale": None})
    data = config.data.model_copy(update=changes)
    return config.model_copy(update={"model": section, "data": data, "loss": LossSection(), "distillation": None})


def build_teacher(config: ContrastiveConfig) -> ContrastiveModel:
    """The model of a `teacher_config` with its weights, in eval mode, without gradients; on the meta device shapes alone."""
    state = torch.get_rng_state()
    model = build_contrastive_model(config)
    if isinstance(config.model, DualEncoderSection) and not building_on_meta():
        assert config.model.image.pretrained is not None
        load_pretrained_weights(model, str(Path(config.model.image.pretrained).parent), config, WHERE)
    torch.set_rng_state(state)  # the student's weights and draws don't depend on there being a teacher
    return model.eval().requires_grad_(False)


def _section_of_folder(folder: str) -> ClipModelSection | DualEncoderSection:
    if _is_dual_encoder(folder):
        about = _read_json(Path(folder) / "config.json")
        return DualEncoderSection(
            type="dual_encoder",
            image=Backbone(pretrained=f"{folder}/image"),
            text=Backbone(pretrained=f"{folder}/text"),
            projection_dim=about["projection_dim"],
            text_pooling=about["text_pooling"],
        )
    found = read_architecture(folder, WHERE)["model_type"]
    for kind, architectures in ARCHITECTURES.items():
        if found in architectures:
            return ClipModelSection.model_validate({"type": kind, "pretrained": folder})
    raise UserError(
        f"{WHERE}: {folder} holds a {found} model; a teacher is a model with image and text features: "
        f"{', '.join(ARCHITECTURES)}, or an exported dual encoder."
    )


def _is_dual_encoder(folder: str) -> bool:
    path = Path(folder) / "config.json"
    return path.is_file() and _read_json(path).get("model_type") == DUAL_ENCODER


def _dual_encoder_inputs(folder: str) -> tuple[int, int]:
    processor = _read_json(Path(folder) / "preprocessor_config.json")
    return processor["crop_size"]["height"], _read_json(Path(folder) / "config.json")["max_text_length"]


def _normalisation(folder: str, data: PairData) -> dict[str, list[float]]:
    """Mean and standard deviation of the folder's image processor, or the run's where it has none."""
    path = Path(folder) / "preprocessor_config.json"
    found = _read_json(path) if path.is_file() else {}
    return {key: found.get(key, getattr(data, key)) for key in ("image_mean", "image_std")}


def _default(key: str) -> list[float]:
    """Of CLIP, which Chinese-CLIP and open_clip use too."""
    values: list[float] = ImageInput.model_fields[key].default
    return list(values)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{WHERE}: {path} can't be read: {error}.") from error
    if not isinstance(found, dict):
        raise UserError(f"{WHERE}: {path} holds a {type(found).__name__}, not settings by name.")
    return found
