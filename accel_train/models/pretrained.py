"""Reading weights from a Hugging Face folder, on this machine alone and without a silent gap."""

from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig

from accel_train.errors import UserError
from accel_train.json_text import read_json

TASK_HEADS = ("cls.", "classifier.", "lm_head.", "qa_outputs.", "discriminator_predictions.")
"""Parts of a checkpoint that belong to another task and that a backbone rightly leaves."""


LOGIT_SCALARS = ("logit_scale", "logit_bias")
IMPLEMENTATIONS = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")
"""Keys of config.json that may name a repository of the Hub, from which transformers would load kernels."""
UNFIT = (
    *(ArithmeticError, AttributeError, ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError),
    *(SafetensorError, StrictDataclassError),
)
"""What transformers raises where values in a folder's files make no model."""


def quiet_transformers() -> None:
    """No progress bars for a model of seconds and no load report: what doesn't fit is an error here."""
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()


def read_architecture(folder: str, where: str) -> dict[str, Any]:
    """config.json of a folder with weights, or a UserError that says what is missing. `where` is the key path."""
    path = Path(folder)
    if not path.is_dir():
        raise UserError(f"{where}: {folder} is not a folder. It must be one that save_pretrained wrote.", code="AT400")
    if not (path / "config.json").is_file():
        raise UserError(
            f"{where}: {folder} has no config.json. It must be a complete Hugging Face folder.", code="AT400"
        )
    if not list(path.glob("*.safetensors")):
        raise UserError(
            f"{where}: {folder} has no .safetensors file. Pickled weights aren't read; convert them first.",
            code="AT400",
        )
    try:
        found = read_json((path / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{where}: {folder}/config.json is not valid JSON: {error}") from error
    if not isinstance(found, dict) or not isinstance(found.get("model_type"), str):
        raise UserError(f"{where}: {folder}/config.json names no model_type.")
    _refuse_what_brings_code(found, folder, where)
    return found


def _refuse_what_brings_code(found: dict[str, Any], folder: str, where: str) -> None:
    """Raises UserError for a folder that would have transformers fetch or change something behind our back."""
    for key, value in found.items():
        if isinstance(value, dict):
            _refuse_what_brings_code(value, folder, where)
        elif key in IMPLEMENTATIONS and "/" in str(value):
            raise UserError(
                f"{where}: {folder}/config.json asks for {key} {value!r}, which is code from the Hugging Face Hub, and no "
                "code is loaded. Take that line out of the file."
            )
    if (Path(folder) / "adapter_config.json").is_file():
        raise UserError(
            f"{where}: {folder} holds a model and an adapter (adapter_config.json), which would change its weights. Merge "
            "the adapter, or move it away."
        )


def read_config(folder: str, where: str, config_class: Any = AutoConfig) -> PretrainedConfig:
    """The configuration object of a folder. No code that lies in it is run, and nobody is asked whether it should be.

    Raises UserError.
    """
    read_architecture(folder, where)
    try:
        config: PretrainedConfig = config_class.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except UNFIT as error:
        raise UserError(f"{where}: {folder}/config.json can't be used. {' '.join(str(error).split())}") from error
    return config


def building_on_meta() -> bool:
    """True inside `torch.device("meta")`, where a model has shapes and no values and reads no weights."""
    return torch.get_default_device().type == "meta"


def load_model(
    model_class: Any,
    folder: str,
    config: PretrainedConfig,
    where: str,
    *,
    ignore: tuple[str, ...] = (),
    **options: Any,
) -> nn.Module:
    """The model in fp32 with all its weights from the folder. Names that start as in `ignore` may lack or be left over.

    Raises UserError for weights that are missing, left over, of another shape, or can't be read.
    """
    try:
        model, report = model_class.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are reported below, by name
            **options,
        )
    except UNFIT as error:
        raise UserError(f"{where}: {folder} can't be loaded. {error!r}") from error
    faults = []
    shapes = [f"{name} ({tuple(there)} there, {tuple(here)} here)" for name, there, here in report["mismatched_keys"]]
    for kind, found in (
        ("missing", report["missing_keys"]),
        ("unexpected", report["unexpected_keys"]),
        ("of another shape", shapes),
    ):
        names = sorted(found)
        names = [name for name in names if not name.startswith(ignore) and not name.endswith("position_ids")]
        if names:
            faults.append(f"{kind}: {', '.join(names[:8])}{' …' if len(names) > 8 else ''}")
    if faults:
        raise UserError(
            f"{where}: the weights in {folder} don't fit {type(model).__name__}. {'; '.join(faults)}.", code="AT401"
        )
    _restore_padding_rows(model, folder)
    return model


@torch.no_grad()
def _restore_padding_rows(model: nn.Module, folder: str) -> None:
    """Reads again what transformers 5.23 overwrites with zeros: the padding token's row of Chinese-CLIP's embeddings.

    No feature depends on the row, but a checkpoint that is converted and converted back should be the same.
    """
    embeddings = {
        f"{name}.weight": module
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and module.padding_idx is not None
    }
    for file in Path(folder).glob("*.safetensors"):
        with safe_open(file, framework="pt") as weights:
            for name in embeddings.keys() & weights.keys():
                row = embeddings[name].padding_idx
                embeddings[name].weight[row] = weights.get_slice(name)[row]


def load_strictly(model: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Copies weights into a model. Raises UserError, which begins with `source`, unless all names and shapes agree, and
    where numbers would become others: integers of a quantised file, or complex ones.

    logit_scale and logit_bias may have any number of dimensions.
    """
    own = model.state_dict()
    weights = {
        name: value.reshape(own[name].shape) if name in LOGIT_SCALARS and name in own and value.numel() == 1 else value
        for name, value in weights.items()
    }
    faults = [f"missing {name}" for name in sorted(own.keys() - weights.keys())]
    faults += [f"unexpected {name}" for name in sorted(weights.keys() - own.keys())]
    faults += [
        f"{name} is {tuple(weights[name].shape)} there and {tuple(own[name].shape)} here"
        for name in sorted(own.keys() & weights.keys())
        if own[name].shape != weights[name].shape
    ]
    faults += [
        f"{name} holds {weights[name].dtype} there and {own[name].dtype} here"
        for name in sorted(own.keys() & weights.keys())
        if own[name].is_floating_point() != weights[name].is_floating_point()
    ]
    if faults:
        more = f" and {len(faults) - 8} more" if len(faults) > 8 else ""
        raise UserError(f"{source} don't fit the model: {'; '.join(faults[:8])}{more}.", code="AT401")
    model.load_state_dict(weights)
