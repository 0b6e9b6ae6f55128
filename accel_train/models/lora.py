"""Low-rank adapters in a decoder, through peft; written out alone or merged into the decoder's weights.

An adapted layer `q_proj` holds q_proj.base_layer.weight, q_proj.lora_A.default.weight (rank, in) and
q_proj.lora_B.default.weight (out, rank), and computes base_layer(x) + alpha / rank x lora_B(lora_A(x)).
"""

from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from accel_train.config.multimodal_llm import LoraSection
from accel_train.errors import UserError

ADAPTER = "default"
BASE = ".base_layer."
LORA = ".lora_"


def add_lora(decoder: PreTrainedModel, section: LoraSection) -> None:
    """Puts adapters into the layers that the section names, in place. They start as nothing: lora_B is zero.

    Every parameter still needs a gradient afterwards, as before: what trains is for the towers to say. Raises UserError.
    """
    try:
        from peft import inject_adapter_in_model
    except ImportError as missing:
        raise UserError("model.lora needs peft: pip install 'accel_train[lora]'", code="AT203") from missing
    needed = {name: parameter.requires_grad for name, parameter in decoder.named_parameters()}
    try:
        inject_adapter_in_model(_peft_config(section), decoder, adapter_name=ADAPTER)
    except (ValueError, TypeError) as error:
        linear = sorted({name.rpartition(".")[2] for name, module in decoder.named_modules() if _is_linear(module)})
        raise UserError(
            f"model.lora.target_modules: {section.target_modules} don't fit; linear layers are {', '.join(linear)}. {error}"
        ) from error
    for name, parameter in decoder.named_parameters():
        parameter.requires_grad_(needed.get(name.replace(BASE, "."), True))


def _is_linear(module: Any) -> bool:
    return type(module).__name__ == "Linear"


def _peft_config(section: LoraSection) -> Any:
    from peft import LoraConfig, TaskType

    return LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        inference_mode=False,
        r=section.rank,
        lora_alpha=section.alpha,
        lora_dropout=section.dropout,
        target_modules=list(section.target_modules),
    )


def save_adapter(weights: dict[str, Tensor], section: LoraSection, folder: str, base: str | None) -> None:
    """Writes what peft's PeftModel.from_pretrained puts onto the decoder.

    weights: the decoder's, by their names in it. base: the folder that the decoder came from, for peft's own notes.
    """
    adapter = {
        f"base_model.model.{name.replace(f'.{ADAPTER}.', '.')}": value.detach().cpu().contiguous()
        for name, value in weights.items()
        if LORA in name
    }
    Path(folder).mkdir(parents=True, exist_ok=True)
    config = _peft_config(section)
    config.inference_mode, config.base_model_name_or_path = True, base
    config.save_pretrained(folder)
    save_file(adapter, str(Path(folder) / "adapter_model.safetensors"), metadata={"format": "pt"})


def merged(weights: dict[str, Tensor], section: LoraSection) -> dict[str, Tensor]:
    """The decoder's weights with the adapters added to them, under the names of a decoder without adapters."""
    scale = section.alpha / section.rank
    found = {}
    for name, value in weights.items():
        if LORA in name:
            continue
        value = value.detach().cpu()
        layer = name.removesuffix("base_layer.weight")
        if layer != name:
            down, up = (weights[f"{layer}lora_{side}.{ADAPTER}.weight"].detach().cpu() for side in "AB")
            value = value + scale * (up.double() @ down.double()).to(value.dtype)
        found[name.replace(BASE, ".")] = value.contiguous()
    return found
