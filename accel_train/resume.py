"""Where a run starts from: which checkpoints it may go on from, and weights from elsewhere."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from accel_train import __version__
from accel_train.checkpoint.carried import CarriedState, from_checkpoint, from_whole
from accel_train.checkpoint.folders import all_folders, pointed_at
from accel_train.checkpoint.load import load_into_model, load_weights
from accel_train.config.load import config_changes
from accel_train.config.schema import RunConfig
from accel_train.engine.engine import Engine
from accel_train.errors import UserError
from accel_train.optim.optimizers import state_names
from accel_train.optim.param_groups import GroupPlan
from accel_train.run_log import RunLog
from accel_train.tasks.task import Task

MAY_CHANGE = (
    "run_dir",
    "engine",
    "precision",
    "max_steps",
    "num_epochs",
    "max_hours",
    "hang_minutes",
    "initialize_from",
    "initialize_optimizer",
    "data.path",
    "data.micro_batch_size",
    "data.num_workers",
    "data.worker_start_method",
    "data.prefetch_batches",
    "data.max_unreadable_samples",
    "optimizer.",
    "schedule.",
    "evaluation.",
    "checkpoint.",
    "nonfinite.",
    "log.",
    "compute.",
    "zero.",
    "advice",
)
"""Keys that may differ when a run goes on. All others decide which samples make up a step, what is computed from them and
how it is judged: a run keeps them to its end."""
FIXED = ("optimizer.name", "evaluation.best_score")


def about_run(config: RunConfig, dataset_fingerprint: str, plan: GroupPlan) -> dict[str, Any]:
    """What a checkpoint remembers of its run, to compare at a resume, and of the age of its optimizer state."""
    first_steps = {name: group.first_step for group in plan.groups if group.first_step for name in group.param_names}
    return {
        "about": {"config": config.model_dump(mode="json"), "dataset_fingerprint": dataset_fingerprint},
        "first_steps": first_steps,
    }


def about_launch(config: RunConfig, engine: Engine) -> dict[str, Any]:
    """What decides, beside the configuration's fixed keys, how a step's numbers are rounded."""
    on_cuda = engine.device.type == "cuda"
    return {
        "engine": engine.launch.engine,
        "offload_optimizer": engine.launch.offload_optimizer,
        "world_size": engine.world_size,
        "micro_batch_size": config.data.micro_batch_size,
        "precision": config.precision,
        "compute": config.compute.model_dump(),
        "device": torch.cuda.get_device_name(engine.device) if on_cuda else f"cpu, {torch.get_num_threads()} threads",
        "versions": {
            "accel_train": __version__,
            **{name: version(name) for name in ("torch", "accelerate", "transformers")},
        },
    }


def check_resumable(saved: dict[str, Any], config: RunConfig, dataset_fingerprint: str, log: RunLog) -> None:
    """Refuses a resume that would not be the same run, and says every other difference aloud. Raises UserError."""
    if saved["dataset_fingerprint"] != dataset_fingerprint:
        raise UserError(
            f"data.path: {config.data.path} holds other training samples than the ones {config.run_dir} was trained on, "
            "so the order would change. Restore the dataset, or start a new run_dir with initialize_from.",
            code="AT300",
        )
    changes = config_changes(saved["config"], config.model_dump(mode="json"))
    forbidden = [change for change in changes if change[0].startswith(FIXED) or not change[0].startswith(MAY_CHANGE)]
    if forbidden:
        listed = "; ".join(f"{path} was {old!r}, is {new!r}" for path, old, new in forbidden)
        raise UserError(
            f"{config.run_dir} can't be resumed with another configuration: {listed}. Restore these values, or start a "
            "new run_dir with initialize_from.",
            code="AT300",
        )
    for path, old, new in changes:
        if path != "run_dir":
            log.say(f"changed since the checkpoint: {path} was {old!r}, is {new!r}")


def load_initial_weights(task: Task, model: nn.Module, source: str, log: RunLog) -> None:
    """`initialize_from`: weights of another run, of a checkpoint, or of a folder that the model's own format reads."""
    log.say(initial_weights(task, model, source))


def initial_weights(task: Task, model: nn.Module, source: str) -> str:
    """As `load_initial_weights`; returns what the log is to say."""
    folder = checkpoint_folder(Path(source))
    if folder is None:
        task.load_pretrained(model, source)
        return f"weights from {source}"
    weights, remark = task.starting_weights(load_weights(folder), model)
    put_weights(model, weights, folder)
    return f"weights from {folder}{remark}"


def carried_state(config: RunConfig, task: Task, model: nn.Module) -> CarriedState:
    """`initialize_optimizer`: the optimizer state that lies beside the initial weights. Raises UserError."""
    source = str(config.initialize_from)
    folder = checkpoint_folder(Path(source))
    names = state_names(config.optimizer)
    if folder is not None:
        carried = from_checkpoint(folder, names, config.optimizer.name)
    else:
        carried = from_whole(task.load_optimizer_state(model, source))
    if not carried.updates:
        raise UserError(f"initialize_optimizer: {source} holds no optimizer state. Set initialize_optimizer to false.")
    return carried


def checkpoint_folder(source: Path, which: str = "best") -> Path | None:
    """The checkpoint that a path means: itself, or a run's `best`, `latest` or `step_XXXXXXXX`. None if it is neither.

    `best` is `latest` where a run has not evaluated.
    """
    if (source / "state.json").is_file():
        return source
    root = source / "checkpoints"
    if not root.is_dir():
        return None
    named = pointed_at(root / which)
    if which == "best" and named is None:
        named = pointed_at(root / "latest")
    if named is not None:
        return named
    raise UserError(
        f"{source} has no checkpoint {which!r}. There are: {', '.join(f.name for f in all_folders(root)) or 'none'}."
    )


def copy_weights(model: nn.Module, folder: Path) -> None:
    """Copies a checkpoint's weights into a whole model, strictly by name and shape. Raises UserError."""
    load_into_model(folder, model)


def put_weights(model: nn.Module, weights: dict[str, Tensor], folder: Path) -> None:
    """Weights that came from a checkpoint, strictly by name and shape. Raises UserError."""
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"{folder} does not fit the model of this configuration: {error}") from error
