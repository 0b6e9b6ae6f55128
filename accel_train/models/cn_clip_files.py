"""Whole files of the original Chinese-CLIP trainer: written for it, and the optimizer's part read from it."""

import os
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from accel_train.errors import UserError
from accel_train.models.cn_clip import names_for
from accel_train.models.name_map import Renamed, split, to_theirs
from accel_train.models.torch_files import has_its_values, read_torch_file

MOMENTS = ("exp_avg", "exp_avg_sq")
SPARED = ("bn", "ln", "bias", "logit_scale")
"""Parts of a name that keep a parameter from weight decay; the original's first parameter group."""


def write_cn_clip(model: nn.Module, path: str, *, epoch: int, step: int, name: str) -> None:
    """What the original trainer's `--resume` and `load_from_name` read, without its optimizer part.

    model: a Chinese-CLIP model with its whole weights. A logit_bias that it may have is left out: it moves all similarities
    alike. The file is written aside and renamed. Raises UserError for another model.
    """
    theirs = to_theirs(model.state_dict(), names_for(_config(model)))
    theirs["logit_scale"] = theirs["logit_scale"].reshape(())
    weights = {f"module.{key}": value for key, value in theirs.items()}
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.partial")
    try:
        torch.save({"epoch": epoch, "step": step, "name": name, "state_dict": weights}, aside)
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.rename(target)
    finally:
        aside.unlink(missing_ok=True)


def cn_clip_optimizer_state(
    path: str, model: nn.Module, where: str = "initialize_from"
) -> dict[str, dict[str, Tensor]]:
    """AdamW's state for each parameter of ours that the original trainer had one for.

    Values: exp_avg and exp_avg_sq in fp32 and in the parameter's shape, step a 0-d fp32 tensor. The original's tensors of
    query, key and value are cut in three. Parameters that it held frozen (--freeze-vision) are absent.
    Raises UserError for a file without an optimizer part, and for one that doesn't fit the model.
    """
    saved = read_torch_file(path, where).get("optimizer")
    states = saved.get("state") if isinstance(saved, dict) else None
    if not isinstance(saved, dict) or not isinstance(states, dict):
        raise UserError(f"{where}: {path} has no optimizer part.")
    if not states:
        raise UserError(f"{where}: {path} was saved before the first step, so its optimizer part is empty.")
    try:
        groups = [[int(number) for number in group["params"]] for group in saved["param_groups"]]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{where}: the optimizer part of {path} has no parameter groups.") from error
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    for order in _orders(_config(model)):
        if [len(group) for group in groups] != [len(part) for part in order]:
            continue
        entries = dict(zip(chain(*groups), chain(*order), strict=True))
        if states.keys() <= entries.keys():
            return _renamed(states, entries, shapes, f"{where}: {path}")
    sizes = " and ".join(str(len(group)) for group in groups)
    raise UserError(
        f"{where}: the optimizer part of {path} has {sizes} parameters, which is not how this model divides."
    )


def _orders(config: PretrainedConfig) -> list[list[list[Renamed]]]:
    """The two parameter groups of the original, for each way in which it may have built the model."""
    orders = []
    for fused_text in (False, True):
        for frozen_vision in (False, True):
            entries = [
                entry
                for entry in names_for(config, fused_text=fused_text)
                if not entry.theirs.endswith(("running_mean", "running_var", "num_batches_tracked"))
                and not (frozen_vision and entry.theirs.startswith("visual."))
            ]
            spared = [entry for entry in entries if any(part in entry.theirs for part in SPARED)]
            orders.append([spared, [entry for entry in entries if entry not in spared]])
    return orders


def _renamed(
    states: dict[int, dict[str, Any]], entries: dict[int, Renamed], shapes: dict[str, torch.Size], source: str
) -> dict[str, dict[str, Tensor]]:
    found: dict[str, dict[str, Tensor]] = {}
    for number, state in states.items():
        entry = entries[number]
        if not isinstance(state, dict) or set(state) != {*MOMENTS, "step"}:
            raise UserError(f"{source}: the state of {entry.theirs} is not AdamW's exp_avg, exp_avg_sq and step.")
        step = torch.as_tensor(state["step"], dtype=torch.float32).reshape(())
        for moment in MOMENTS:
            for name, value in _parts(state[moment], entry, shapes, source).items():
                found.setdefault(name, {"step": step.clone()})[moment] = value
    return found


def _parts(value: Any, entry: Renamed, shapes: dict[str, torch.Size], source: str) -> dict[str, Tensor]:
    """One moment under our names, without the names that are no parameters here (a fixed temperature)."""
    fault = f"{source}: the moments of {entry.theirs} don't fit the model"
    if not isinstance(value, Tensor) or not has_its_values(value):
        raise UserError(f"{fault}: they are {type(value).__name__}, not plain tensors.")
    try:
        parts = split(value, entry)
    except ValueError as error:
        raise UserError(f"{fault}: {error}.") from error
    found = {}
    for name in parts.keys() & shapes.keys():
        shape = shapes[name]
        if parts[name].shape != shape and not (parts[name].ndim == 0 and shape.numel() == 1):
            raise UserError(f"{fault}: {tuple(parts[name].shape)} there, {tuple(shape)} here.")
        found[name] = parts[name].reshape(shape).clone()
    return found


def _config(model: nn.Module) -> PretrainedConfig:
    if not isinstance(model, PreTrainedModel) or not model.config.model_type.startswith("chinese_clip"):
        kind = type(model).__name__
        raise UserError(f"the original trainer's files hold Chinese-CLIP models alone, and this is a {kind}.")
    config: PretrainedConfig = model.config
    return config
