"""Opens what training left behind: a run, one of its checkpoints, or an exported folder."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from accel_train.checkpoint.files import read_state
from accel_train.config.load import load_config
from accel_train.config.schema import RunConfig
from accel_train.engine.launch import name_accelerator
from accel_train.errors import UserError
from accel_train.models.pretrained import quiet_transformers
from accel_train.resume import checkpoint_folder, copy_weights
from accel_train.tasks.build import build_task
from accel_train.tasks.task import Task

RUN_CONFIG = "config.yaml"
EXPORT_CONFIG = "accel_train.yaml"
"""The run's configuration, kept beside an exported model: Hugging Face's own files don't say how images were resized."""


@dataclass(slots=True)
class Trained:
    config: RunConfig
    task: Task
    model: nn.Module
    source: str
    """What the weights are, in words."""
    step: int | None
    """None for an exported model."""


def open_config(folder: str, overrides: list[str]) -> RunConfig:
    """The configuration that lies in a run or an export. Raises UserError."""
    for name in (RUN_CONFIG, EXPORT_CONFIG):
        if (Path(folder) / name).is_file():
            return load_config(Path(folder) / name, overrides)
    raise UserError(f"{folder} is neither a run ({RUN_CONFIG}) nor an export ({EXPORT_CONFIG}) of accel-train.")


def open_trained(folder: str, config: RunConfig, *, checkpoint: str) -> Trained:
    """The model on the CPU with its trained weights. `checkpoint` is best, latest or step_XXXXXXXX. Raises UserError."""
    name_accelerator(on_cuda=torch.cuda.is_available())
    quiet_transformers()
    is_export = (Path(folder) / EXPORT_CONFIG).is_file()
    task = build_task(config)
    if is_export:
        task = build_task(task.config_of_export(config, folder))
    model = task.build_model()
    if is_export:
        task.load_pretrained(model, folder)
        return Trained(config, task, model, f"export {folder}", None)
    found = checkpoint_folder(Path(folder), checkpoint)
    if found is None:
        raise UserError(f"{folder} holds no checkpoints yet.")
    copy_weights(model, found)
    step = int(read_state(found)["step"])
    if checkpoint == "best" and not (found.parent / "best").exists():
        checkpoint = "latest"  # the run has not been evaluated, or never became better than it began
    return Trained(config, task, model, f"{folder}, {checkpoint} checkpoint (step {step})", step)
