"""The gradient that it must be: one process, the plain model, plain autograd over the whole batch.

It shares with training the model, the data, the order, the task's losses and the plan of the groups, and nothing of the
engines, of `step.py` or of the loop.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from accel_train.data.dataset import UnreadableSample
from accel_train.data.padding import join, padding_of
from accel_train.engine.engine import run_in
from accel_train.models.batch_norm import LocalBatchNorm2d, SyncedBatchNorm2d
from accel_train.models.dropout import install_per_sample_dropout
from accel_train.optim.param_groups import freeze, set_train_mode
from accel_train.randomness import forward_randomness
from accel_train.resume import copy_weights, initial_weights
from accel_train.run import Run
from accel_train.set_up import build_model
from accel_train.tasks.task import Batch, Task
from accel_train.tools.row_progress import RowProgress
from accel_train.tools.verify.launched import Launched, Named, Piece

Draw = Callable[[int], AbstractContextManager[None]]


@dataclass(slots=True)
class PlainGradients:
    """Of one global batch, before clipping, on the CPU."""

    how: str
    """What was computed, in words."""
    sample_ids: list[int]
    before: Named
    """Weights before the step."""
    losses: dict[str, float]
    gradients: Named
    buffers: Named
    """After the forward pass."""


def find_plain_gradients(run: Run, launched: Launched, checkpoint: Path | None, at_once: int | None) -> PlainGradients:
    """Called on one process alone, after the engine has given its memory back.

    `at_once` samples are computed at a time; None is the whole batch, or as much of it as a GPU's memory allows.
    """
    task, model = _plain_model(run, checkpoint)
    before = {name: parameter.detach().cpu().clone() for name, parameter in model.named_parameters()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    samples = _read(run, launched.step)
    replayed = _layout(run, task, model, launched, samples)
    for layout, how in _attempts(list(samples), replayed, at_once):
        _put_buffers(model, buffers)
        model.zero_grad()
        try:
            keep_graphs = how in WHOLE
            total = _num_passes(len(layout), in_parts=not task.compares_whole_batch, keep_graphs=keep_graphs)
            with RowProgress("reference step", total, shown=True, unit="passes") as progress:
                losses = _add_gradients(
                    run, task, model, launched, samples, layout, progress.advance, keep_graphs=keep_graphs
                )
            break
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
    else:
        raise torch.OutOfMemoryError("one sample at a time does not fit")
    return PlainGradients(
        how=how,
        sample_ids=list(samples),
        before=before,
        losses=losses,
        gradients={
            name: parameter.grad.float().cpu() / launched.loss_scale
            for name, parameter in model.named_parameters()
            if parameter.grad is not None
        },
        buffers={name: buffer.detach().cpu() for name, buffer in model.named_buffers()},
    )


def _plain_model(run: Run, checkpoint: Path | None) -> tuple[Task, nn.Module]:
    """The model with the weights that the run starts from, in train mode on the device."""
    config = run.config
    task, model = build_model(config)
    if checkpoint is not None:
        copy_weights(model, checkpoint)
    elif config.initialize_from is not None:
        initial_weights(task, model, config.initialize_from)
    task.prepare_training(run.engine.device)
    freeze(model, run.plan)
    if config.dropout == "per_sample":
        install_per_sample_dropout(model)
    run_in(model, config.precision, run.engine.device.type)
    set_train_mode(model)
    return task, model.to(run.engine.device)


def _read(run: Run, step: int) -> dict[int, Batch]:
    """The readable samples of a global batch by id, in order, each as a batch of one."""
    samples = {}
    rows = run.order.rows(step).tolist()
    with RowProgress("reading the reference's batch", len(rows), shown=True, unit="samples") as progress:
        for row in rows:
            with suppress(UnreadableSample):
                sample = run.dataset.read(row, run.order.epoch(step))
                samples[int(sample["sample_id"])] = {name: value[None] for name, value in sample.items()}
            progress.advance()
    return samples


# How the batch is cut


Layout = list[Piece]
ONE_PASS = "one forward pass over the whole batch, one backward pass"
AS_DRAWN = (
    "the launch's micro-batches one after the other, each with the launch's own random draws (dropout is fast: one forward "
    "pass would draw other masks), then one loss and one backward pass over the whole batch"
)
AS_NORMALISED = (
    "the launch's micro-batches one after the other, because BatchNorm takes its statistics from each, then one loss and "
    "one backward pass over the whole batch"
)
WHOLE = (ONE_PASS, AS_DRAWN, AS_NORMALISED)


def _layout(
    run: Run, task: Task, model: nn.Module, launched: Launched, samples: dict[int, Batch]
) -> tuple[Layout, str]:
    """The whole batch as one piece; or as the launch cut it, where the model's outputs depend on that."""
    training = {type(module): module for module in model.modules() if module.training}
    if SyncedBatchNorm2d in training:
        return _joined_over_ranks(run, model, launched), AS_NORMALISED
    if LocalBatchNorm2d in training:
        return launched.pieces, AS_NORMALISED
    if run.config.dropout == "fast" and len(launched.pieces) > 1 and _draws(run, task, model, launched, samples):
        return launched.pieces, AS_DRAWN
    return [Piece(0, 0, 0, list(samples))], ONE_PASS


def _joined_over_ranks(run: Run, model: nn.Module, launched: Launched) -> Layout:
    """Micro-batches j of all ranks as one: what `sync` normalises together, here by statistics of its own."""
    for module in model.modules():
        if isinstance(module, SyncedBatchNorm2d):
            module.forward = LocalBatchNorm2d.forward.__get__(module)  # type: ignore[method-assign]
    rows = [[piece for piece in launched.pieces if piece.index == j] for j in range(launched.num_micro_batches)]
    return [Piece(own[0].position, 0, j, [i for piece in own for i in piece.sample_ids]) for j, own in enumerate(rows)]


def _draws(run: Run, task: Task, model: nn.Module, launched: Launched, samples: dict[int, Batch]) -> bool:
    """Whether a forward pass takes random numbers from torch's generators."""
    first = launched.pieces[0]
    batch = _batch_of(run, task, samples, first)
    with _drawing(run, -1, first, batch), torch.no_grad():
        before = _generator_states(run.engine.device)
        model(batch)
        return any(not torch.equal(a, b) for a, b in zip(before, _generator_states(run.engine.device), strict=True))


def _attempts(sample_ids: list[int], replayed: tuple[Layout, str], at_once: int | None) -> Iterator[tuple[Layout, str]]:
    """Ways to compute the same gradient, in falling need of memory."""
    layout, how = replayed
    if at_once is None:
        yield layout, how
    if len(layout) > 1:
        yield layout, "the launch's micro-batches one after the other, by cached features, to save memory"
        return
    size = at_once or len(sample_ids) // 2
    while size:
        starts = range(0, len(sample_ids), size)
        pieces = [Piece(start, 0, j, sample_ids[start : start + size]) for j, start in enumerate(starts)]
        yield pieces, f"{size} samples at a time, by cached features (the gradient of the whole batch in less memory)"
        size = size // 2 if at_once is None else 0


# The gradient


def _add_gradients(
    run: Run,
    task: Task,
    model: nn.Module,
    launched: Launched,
    samples: dict[int, Batch],
    layout: Layout,
    passed: Callable[[], None],
    *,
    keep_graphs: bool,
) -> dict[str, float]:
    """Leaves the gradient of the whole batch, times the loss scale, in the parameters. Returns the losses.

    `passed` is called for each pass, as `_num_passes` counts them.
    """
    batches = [_batch_of(run, task, samples, piece) for piece in layout]

    def draw(j: int) -> AbstractContextManager[None]:
        return _drawing(run, launched.step, layout[j], batches[j])

    if not task.compares_whole_batch:
        return _added_up(task, model, batches, draw, launched.loss_scale, passed)
    joined: Batch = {name: torch.cat([batch[name] for batch in batches]) for name in task.loss_columns}
    outputs = []
    for j, batch in enumerate(batches):
        with draw(j), nullcontext() if keep_graphs else torch.no_grad():
            outputs.append(model(batch))
        passed()
    whole = _whole(task, outputs)
    if keep_graphs:
        losses = task.losses(whole, joined)
        (_sum(losses) * launched.loss_scale).backward()
        passed()
        return _as_numbers(losses)
    leaves = {name: value.requires_grad_() for name, value in whole.items()}
    losses = task.losses(leaves, joined)
    (_sum(losses) * launched.loss_scale).backward()
    start = 0
    for j, batch in enumerate(batches):
        rows = slice(start, start + len(batch["sample_id"]))
        start = rows.stop
        with draw(j):
            found = model(batch)
        terms = [
            (value * (leaf.grad if name in task.shared_outputs else leaf.grad[rows])).sum()
            for name, value in found.items()
            if (leaf := leaves[name]).grad is not None
            and value.requires_grad
            and (j == 0 or name not in task.shared_outputs)
        ]
        torch.stack(terms).sum().backward()
        passed()
    return _as_numbers(losses)


def _num_passes(pieces: int, *, in_parts: bool, keep_graphs: bool) -> int:
    """Forward and backward of a piece together, or one after the other where the loss stands between them."""
    if in_parts:
        return pieces
    return pieces + 1 if keep_graphs else 2 * pieces


def _added_up(
    task: Task, model: nn.Module, batches: list[Batch], draw: Draw, scale: float, passed: Callable[[], None]
) -> dict[str, float]:
    """A mean over targets: each piece by its share of them."""
    targets = [float(task.num_targets(batch)) for batch in batches]
    total: dict[str, float] = {}
    for j, batch in enumerate(batches):
        if targets[j] > 0:
            share = targets[j] / sum(targets)
            with draw(j):
                losses = task.losses(model(batch), batch)
            (_sum(losses) * share * scale).backward()
            for name, value in _as_numbers(losses).items():
                total[name] = total.get(name, 0.0) + value * share
        passed()
    return total


def _whole(task: Task, outputs: list[Batch]) -> Batch:
    return {
        name: value if name in task.shared_outputs else torch.cat([piece[name] for piece in outputs])
        for name, value in outputs[0].items()
    }


def _batch_of(run: Run, task: Task, samples: dict[int, Batch], piece: Piece) -> Batch:
    """Joined from its samples alone, so that it is padded as the launch's own micro-batch is."""
    batch = join([samples[i] for i in piece.sample_ids], padding_of(run.dataset))
    return task.add_to_batch(run.engine.to_device(batch))


def _drawing(run: Run, step: int, piece: Piece, batch: Batch) -> AbstractContextManager[None]:
    return forward_randomness(
        seed=run.config.seed,
        step=step,
        position=piece.position,
        sample_ids=batch["sample_id"] if run.config.dropout == "per_sample" else None,
    )


def _generator_states(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def _put_buffers(model: nn.Module, buffers: Named) -> None:
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])


def _sum(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


def _as_numbers(losses: dict[str, Tensor]) -> dict[str, float]:
    return {name: float(value.detach()) for name, value in losses.items()}
