"""The step that is judged: taken by the run's own engine, loop and loader, and read before and after."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from accel_train.agreement import agree
from accel_train.data.loader import Step
from accel_train.engine.whole import whole_gradients, whole_state, whole_weights
from accel_train.gradients import all_finite, find_gradients, update
from accel_train.optim.optimizers import state_names
from accel_train.run import Run
from accel_train.train import global_batches, set_learning_rates

Named = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Piece:
    """One micro-batch."""

    position: int
    """Place of its first row in the global batch."""
    rank: int
    index: int
    """Which of the rank's micro-batches it is."""
    sample_ids: list[int]


@dataclass(slots=True)
class Launched:
    """One step as the launch takes it. Tensors are whole, on the CPU, and on rank 0 alone."""

    step: int
    pieces: list[Piece]
    """All micro-batches of all ranks, in the order of the global batch."""
    loss_scale: float = 1.0
    losses: dict[str, float] = field(default_factory=dict)
    is_finite: bool = True
    """Whether training would take the update."""
    groups: list[dict[str, Any]] = field(default_factory=list)
    """The engine's optimizer's own groups, after the update, without their parameters."""
    before: Named = field(default_factory=dict)
    """Weights before the step, and after it."""
    after: Named = field(default_factory=dict)
    gradients: Named = field(default_factory=dict)
    """Reduced, before clipping. A parameter that has none is left out."""
    state_before: dict[str, Named] = field(default_factory=dict)
    """The optimizer's state by kind, where the run brings any; and after the update."""
    state: dict[str, Named] = field(default_factory=dict)
    buffers: Named = field(default_factory=dict)
    """After the step."""
    remarks: list[str] = field(default_factory=list)
    """What can't be right whatever the reference says: ranks that differ, a model that computes with other weights."""

    @property
    def sample_ids(self) -> list[int]:
        return [sample for piece in self.pieces for sample in piece.sample_ids]

    @property
    def world_size(self) -> int:
        return 1 + max(piece.rank for piece in self.pieces)

    @property
    def num_micro_batches(self) -> int:
        """On each rank."""
        return len(self.pieces) // self.world_size


def take_launched_step(run: Run, *, has_state: bool) -> Launched:
    """Takes the run's next step on all ranks. Raises UserError and CheckFailed as training would.

    `has_state` says whether the run brings optimizer state. An optimizer that has taken no step makes its state itself, and
    must find none.
    """
    engine, is_main = run.engine, run.engine.is_main
    kinds = state_names(run.config.optimizer)
    shapes = {name: shape for part in engine.gather_objects(_shapes(run)) for name, shape in part.items()}
    batch = next(global_batches(run))
    launched = Launched(run.state.step, _pieces(run, batch))
    launched.before, launched.state_before = _held(run, kinds if has_state else (), shapes)
    agreed = agree(run, batch)
    set_learning_rates(run)
    losses, norms = find_gradients(run, batch, agreed.rows)
    launched.loss_scale = engine.loss_scale
    launched.losses = {name: float(value) for name, value in losses.losses.items()}
    digest = hashlib.sha256()
    for name, gradient in whole_gradients(engine):
        if gradient is not None:
            on_cpu = gradient.float().cpu()
            digest.update(on_cpu.numpy().tobytes())
            if is_main:
                launched.gradients[name] = on_cpu.clone()
    if not _alike(run, digest):
        launched.remarks.append(
            "the ranks hold different gradients after the reduction: some were not reduced (a model that is called past "
            "its wrapper skips the wrapper's hooks), and the ranks' weights will drift apart"
        )
    launched.is_finite = all_finite(losses, norms)
    if launched.is_finite:
        update(run, norms)
    launched.groups = [{k: v for k, v in group.items() if k != "params"} for group in engine.optimizer.param_groups]
    launched.after, launched.state = _held(run, kinds, shapes)
    launched.remarks += _drift(run, launched.after)
    launched.buffers = {name: buffer.detach().cpu() for name, buffer in engine.bare_model().named_buffers()}
    return launched


def _shapes(run: Run) -> dict[str, tuple[int, ...]]:
    return {shard.name: shard.shape for shard in run.engine.shards(())}


def _held(run: Run, kinds: tuple[str, ...], shapes: dict[str, tuple[int, ...]]) -> tuple[Named, dict[str, Named]]:
    """Weights, and state by kind, on rank 0."""
    found: dict[str, Named] = {"weight": {}, **{kind: {} for kind in kinds}}
    for kind, name, whole in whole_state(run.engine, kinds, shapes):
        if run.engine.is_main:
            found[kind][name] = whole.to("cpu", copy=True)
    return found.pop("weight"), found


def _pieces(run: Run, batch: Step) -> list[Piece]:
    mine = [
        Piece(position, run.engine.rank, index, columns["sample_id"].tolist())
        for index, (position, columns) in enumerate(zip(batch.positions, batch.micro_batches, strict=True))
    ]
    everyone = [piece for pieces in run.engine.gather_objects(mine) for piece in pieces]
    return sorted(everyone, key=lambda piece: piece.position)


def _alike(run: Run, digest: Any) -> bool:
    return len(set(run.engine.gather_objects(digest.hexdigest()))) == 1


def _drift(run: Run, held: Named) -> list[str]:
    """Whether the ranks' models compute with the same weights, and with those that the optimizer holds."""
    digest, stale = hashlib.sha256(), []
    limited = run.task.weight_limits()  # lowered where the optimizer holds them; a copy follows one step later
    for name, weight in whole_weights(run.engine):
        on_cpu = weight.float().cpu()
        digest.update(on_cpu.numpy().tobytes())
        if held and name not in limited and not torch.equal(on_cpu, held[name]):
            stale.append(name)
    remarks = []
    if not _alike(run, digest):
        remarks.append("the ranks' models differ after the update")
    if stale:
        remarks.append(f"the model computes with other weights than the optimizer holds: {_some(stale)}")
    return remarks


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")
