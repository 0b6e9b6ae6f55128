"""Opens a model to use it: of a run, one of its checkpoints, an exported folder, or published weights."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from accel_train.checkpoint.files import read_state
from accel_train.config.contrastive import ClipModelSection, ContrastiveConfig
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
    """None for an exported model and for published weights."""


def open_config(source: str, overrides: list[str]) -> RunConfig:
    """The configuration that lies in a run or an export, or `source` itself if it is a file. Raises UserError."""
    if Path(source).is_file():
        return load_config(source, overrides)
    for name in (RUN_CONFIG, EXPORT_CONFIG):
        if (Path(source) / name).is_file():
            return load_config(Path(source) / name, overrides)
    raise UserError(
        f"{source} is neither a run ({RUN_CONFIG}) nor an export ({EXPORT_CONFIG}) of accel-train, nor a configuration "
        "file that names pretrained weights."
    )


def open_trained(source: str, config: RunConfig, *, checkpoint: str | None) -> Trained:
    """The model on the CPU with its weights. Raises UserError.

    `checkpoint` is best, latest or step_XXXXXXXX of a run; None is best. An export or a configuration file has one set of
    weights, so there it must be None.
    """
    name_accelerator(on_cuda=torch.cuda.is_available())
    quiet_transformers()
    is_run = not Path(source).is_file() and not (Path(source) / EXPORT_CONFIG).is_file()
    if checkpoint is not None and not is_run:
        raise UserError(f"--checkpoint: {source} is no run; it has no checkpoints to choose from. Leave it out.")
    if Path(source).is_file():
        return _published(source, config)
    return _of_run(source, config, checkpoint or "best") if is_run else _exported(source, config)


def _of_run(folder: str, config: RunConfig, checkpoint: str) -> Trained:
    task = build_task(config)
    model = task.build_model()
    found = checkpoint_folder(Path(folder), checkpoint)
    if found is None:
        raise UserError(f"{folder} holds no checkpoints yet.")
    copy_weights(model, found)
    step = int(read_state(found)["step"])
    if checkpoint == "best" and not (found.parent / "best").exists():
        checkpoint = "latest"  # the run has not been evaluated, or never became better than it began
    return Trained(config, task, model, f"{folder}, {checkpoint} checkpoint (step {step})", step)


def _exported(folder: str, config: RunConfig) -> Trained:
    task = build_task(config)
    task = build_task(task.config_of_export(config, folder))
    model = task.build_model()
    task.load_pretrained(model, folder)
    return Trained(config, task, model, f"export {folder}", None)


def _published(path: str, config: RunConfig) -> Trained:
    """The model that training with this file would start from, if none of its weights are random."""
    task = build_task(config)
    weights = config.initialize_from
    if weights is None and isinstance(config, ContrastiveConfig) and isinstance(config.model, ClipModelSection):
        weights = config.model.pretrained
    if weights is None:
        raise UserError(
            f"{path} is a configuration, and the model it describes has random weights. Give the folder of a run or an "
            "export, or a configuration with model.pretrained or initialize_from."
        )
    model = task.build_model()
    if config.initialize_from is not None:
        found = checkpoint_folder(Path(config.initialize_from))
        if found is None:
            task.load_pretrained(model, config.initialize_from)
        else:
            copy_weights(model, found)
    return Trained(config, task, model, f"{path} (weights of {weights})", None)
