"""Optimizer state that a run brings along from another one."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from accel_train.checkpoint import files
from accel_train.checkpoint.files import DamagedCheckpoint, Reader
from accel_train.checkpoint.state import num_updates
from accel_train.errors import UserError

WholeStates = dict[str, dict[str, Tensor]]
"""For each parameter its state tensors, each of the parameter's shape, and the 0-d `step`."""


@dataclass(frozen=True, slots=True)
class CarriedState:
    updates: dict[str, int]
    """For each parameter that has state: the updates behind it."""
    read_into: Callable[[Tensor, str, str, int], None]
    """Fills a flat piece with a kind of state of a parameter, from an offset on, as `files.Reader.read_into` does."""


def from_checkpoint(folder: Path, state_names: tuple[str, ...], optimizer: str) -> CarriedState:
    """The state in a checkpoint of ours, read piece by piece. Raises UserError if it is damaged or of another optimizer."""
    try:
        saved = files.read_state(folder)
        files.check_files(folder, saved)
    except DamagedCheckpoint as damage:
        raise UserError(f"initialize_from: {folder} can't be used: {damage}") from damage
    theirs = saved["about"]["config"]["optimizer"]["name"]
    if theirs != optimizer:
        raise UserError(
            f"initialize_optimizer: {folder} holds state of {theirs}, but optimizer.name is {optimizer}. Set "
            "initialize_optimizer to false, or take the same optimizer."
        )
    reader = Reader(folder)
    held = [set(reader.index.get(kind, {})) for kind in state_names]
    names = set.intersection(*held) if held else set()
    first_steps = saved["first_steps"]
    updates = {name: num_updates(saved["step"], first_steps.get(name, 0), saved["skipped"]) for name in sorted(names)}
    return CarriedState(updates, reader.read_into)


def from_whole(states: WholeStates) -> CarriedState:
    """State that lies in memory."""

    def read_into(piece: Tensor, kind: str, name: str, offset: int) -> None:
        piece.copy_(states[name][kind].reshape(-1)[offset : offset + piece.numel()])

    return CarriedState({name: int(state["step"]) for name, state in states.items()}, read_into)
