"""Which module of a model is the first to give, or to pass back, what is not finite: found by hooks in a repeated step."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

WHOLE_MODEL = "the model's outputs"


@dataclass(frozen=True, slots=True)
class Sighting:
    """Where something was seen that is not finite."""

    where: Literal["forward", "loss", "backward", "weight gradients"]
    """`forward`: in what a module gives. `backward`: in the gradient of what a module takes, or of the model's outputs."""
    module: str | None = None
    """Its name in the model, and its class."""
    kind: str | None = None
    rank: int = 0
    micro_batch: int | None = None
    """Counted on its rank, from 0. None for what belongs to the whole batch."""
    rows: tuple[int, ...] = ()
    """Rows of the micro-batch that are not finite, if what was seen has one row for each sample."""

    @property
    def place(self) -> tuple[int, int, int]:
        """Sorts the sightings of all ranks: the earliest is the cause, the others may follow from it."""
        return ["forward", "loss", "backward", "weight gradients"].index(self.where), self.micro_batch or 0, self.rank

    def in_words(self) -> str:
        named = "" if self.module is None else f" of {self.module} ({self.kind})"
        at = "" if self.micro_batch is None else f", rank {self.rank}, micro-batch {self.micro_batch}"
        return f"{self.where}{named}{at}"


class Watch:
    """What the hooks of one rank have seen first."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.micro_batch = 0
        self.num_rows = 0
        self.forward: Sighting | None = None
        self.backward: Sighting | None = None
        self._gradient = 0

    def first(self, *, losses_are_finite: bool) -> Sighting:
        """For a step that is known to have gone wrong."""
        loss = None if losses_are_finite else Sighting("loss", rank=self.rank)
        return self.forward or loss or self.backward or Sighting("weight gradients", rank=self.rank)

    def _gave(self, name: str, module: nn.Module, args: Any, kwargs: Any, given: Any) -> None:
        for tensor in _floats_in(given):
            # A module is called after those around it, and gives before them.
            if self.forward is None and not tensor.isfinite().all():
                rows = _bad_rows(tensor.detach(), self.num_rows)
                kind = type(module).__name__
                self.forward = Sighting("forward", name or WHOLE_MODEL, kind, self.rank, self.micro_batch, rows)
            if not name and tensor.requires_grad:
                tensor.register_hook(partial(self._passed_back, WHOLE_MODEL, type(module).__name__, self.micro_batch))

    def _takes(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        for tensor in _floats_in([args, kwargs]) if name else ():
            if tensor.requires_grad:
                tensor.register_hook(partial(self._passed_back, name, type(module).__name__, self.micro_batch))

    def _passed_back(self, name: str, kind: str, micro_batch: int, gradient: Tensor) -> None:
        if self.backward is None:
            is_it = not gradient.isfinite().all()
        else:  # a module and the first one inside it take the same tensor: the inner one is meant
            is_it = name.startswith(f"{self.backward.module}.") and gradient.data_ptr() == self._gradient
        if is_it:
            self._gradient = gradient.data_ptr()
            self.backward = Sighting("backward", name, kind, self.rank, micro_batch)


@contextmanager
def watching(model: nn.Module, rank: int) -> Iterator[Watch]:
    """Hooks on every module of a bare model, for one forward and backward pass."""
    watch = Watch(rank)
    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(partial(watch._takes, name), with_kwargs=True))
        handles.append(module.register_forward_hook(partial(watch._gave, name), with_kwargs=True))
    # What is compiled would be compiled anew because of the hooks; where nothing is, the compiler need not even be loaded.
    is_compiled = any(module._compiled_call_impl is not None for module in model.modules())
    try:
        with torch.compiler.set_stance("force_eager") if is_compiled else nullcontext():
            yield watch
    finally:
        for handle in handles:
            handle.remove()


def _floats_in(thing: Any) -> Iterator[Tensor]:
    if isinstance(thing, Tensor):
        if thing.is_floating_point():
            yield thing
    elif isinstance(thing, Mapping):
        for value in thing.values():
            yield from _floats_in(value)
    elif isinstance(thing, (list, tuple)):
        for value in thing:
            yield from _floats_in(value)


def _bad_rows(tensor: Tensor, num_rows: int) -> tuple[int, ...]:
    if not tensor.ndim or len(tensor) != num_rows:
        return ()
    bad = ~tensor.isfinite().flatten(1).all(1) if tensor.ndim > 1 else ~tensor.isfinite()
    return tuple(bad.nonzero().flatten().tolist())
