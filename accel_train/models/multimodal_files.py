"""Multimodal models in files: the decoder as a Hugging Face folder, all else under its own names in one file."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from accel_train.errors import UserError
from accel_train.models.lora import BASE, LORA
from accel_train.models.pretrained import load_model, load_strictly, read_config

LLM_FOLDER = "llm"
SENSES = "senses.safetensors"
"""Encoders, aligner, and in phase 2 the projector."""
LLM = "llm."


def save_senses(model: nn.Module, folder: str) -> None:
    Path(folder).mkdir(parents=True, exist_ok=True)
    weights = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in model.state_dict().items()
        if not name.startswith(LLM)
    }
    save_file(weights, str(Path(folder) / SENSES), metadata={"format": "pt"})


def save_decoder(model: nn.Module, weights: dict[str, Tensor], folder: str) -> None:
    """What AutoModelForCausalLM loads. weights: the decoder's, without adapters."""
    decoder = model.get_submodule(LLM_FOLDER)
    assert isinstance(decoder, PreTrainedModel)
    # A decoder with adapters would write other names: a plain one of the same configuration writes these.
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(decoder.config)
    path = Path(folder) / LLM_FOLDER
    path.mkdir(parents=True, exist_ok=True)
    plain.save_pretrained(path, state_dict={name: value.detach().cpu().contiguous() for name, value in weights.items()})


def load_senses(model: nn.Module, folder: str) -> None:
    """Everything but the decoder. Raises UserError where file and model don't fit each other."""
    load_strictly(model, read_senses(folder), f"initialize_from: the weights in {folder}")


def load_multimodal(model: nn.Module, folder: str, *, has_lora: bool) -> None:
    """An export of the whole model; adapters of the model start as nothing on top of it. Raises UserError."""
    where = "initialize_from"
    llm = str(Path(folder) / LLM_FOLDER)
    config = read_config(llm, where)
    decoder = dict(load_model(AutoModelForCausalLM, llm, config, where).state_dict())
    own = {name: value for name, value in model.state_dict().items() if name.startswith(LLM)}
    placed = {
        name: value if has_lora and LORA in name else decoder[plain]
        for name, value in own.items()
        if (plain := name.removeprefix(LLM).replace(BASE, ".")) in decoder or LORA in name
    }
    load_strictly(model, placed | read_senses(folder), f"{where}: the weights in {folder}")


def is_export_of_phase_1(folder: str) -> bool:
    """Whether this is an export of `multimodal_alignment`: encoders and aligner, and no decoder beside them."""
    return (Path(folder) / SENSES).is_file() and not (Path(folder) / LLM_FOLDER).exists()


def read_senses(folder: str) -> dict[str, Tensor]:
    path = Path(folder) / SENSES
    try:
        weights: dict[str, Tensor] = load_file(str(path))
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"initialize_from: {path} can't be read ({error}). It must be an export of this task."
        ) from error
    return weights
