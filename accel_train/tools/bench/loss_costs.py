"""What InfoNCE by chunks costs beside its plain form: time where both fit, memory at any size."""

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from accel_train.interrupts import uninterrupted
from accel_train.losses.chunked import CHUNK_SIZE
from accel_train.losses.contrastive import info_nce
from accel_train.tools.bench.figures import Figure, in_turns, ratio_figure

WIDTH = 512
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def plain_info_nce(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """As CLIP's own pseudocode has it, with the whole similarity matrix in the graph."""
    logits, own = scale * image @ text.T, torch.arange(len(image), device=image.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def gradients(loss: Loss, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss(*inputs), inputs)


def features(rows: int, device: str = "cpu") -> list[Tensor]:
    """image_features, text_features and logit_scale, asking for a gradient."""
    pair = [F.normalize(torch.randn(rows, WIDTH, device=device), dim=-1) for _ in range(2)]
    return [value.requires_grad_() for value in (*pair, torch.tensor(20.0, device=device))]


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that operations make, while they live; `most` is their largest sum."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in _tensors((args, kwargs)):
            self._seen.add(tensor.untyped_storage()._cdata)
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            if storage._cdata not in self._seen:
                self._seen.add(storage._cdata)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())
        self.most = max(self.most, self.now)
        return result

    def _freed(self, place: int, num_bytes: int) -> None:
        self._seen.discard(place)
        self.now -= num_bytes


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


@uninterrupted()
def bytes_held(loss: Loss, rows: int) -> int:
    """What forward and backward pass hold at most beside features and their gradients, without memory or arithmetic."""
    with FakeTensorMode():
        inputs = features(rows)
        with LiveBytes() as live:
            gradients(loss, inputs)
    return live.most - sum(value.untyped_storage().nbytes() for value in inputs)


def memory_figure(rows: int = 65_536) -> Figure:
    share = bytes_held(info_nce, rows) / bytes_held(plain_info_nce, rows)
    how = f"{rows:,} x {WIDTH}: bytes held beside features and their gradients, over those of the plain form; counted"
    return Figure("loss/info_nce_memory_to_plain", share, 0.0, goal=0.01, how=how, better="lower")


def fused_figure(rows: int, num_ranks: int, *, rounds: int, device: str = "cuda") -> Figure:
    """What `info_nce` takes by itself over its chunks, for one rank's share of the rows."""
    inputs = features(rows, device)
    share = partial(info_nce, anchors=(0, rows // num_ranks))
    ways: dict[str, Callable[[], object]] = {
        "fused": partial(gradients, share, inputs),
        "chunks": partial(gradients, partial(share, chunk_size=CHUNK_SIZE), inputs),
    }
    seconds = in_turns(ways, rounds=rounds, settle=torch.cuda.synchronize if device == "cuda" else lambda: None)
    how = f"InfoNCE, {rows:,} x {WIDTH}, the share of one of {num_ranks} ranks, forward and backward, over chunks"
    name = f"loss/fused_to_chunks_{rows}_on_{num_ranks}"
    return ratio_figure(name, seconds["fused"], seconds["chunks"], goal=1.0, how=how, better="lower")


def time_figure(rows: int, *, rounds: int = 7, device: str = "cpu") -> Figure:
    inputs = features(rows, device)
    ways: dict[str, Callable[[], object]] = {
        "ours": partial(gradients, info_nce, inputs),
        "plain": partial(gradients, plain_info_nce, inputs),
    }
    seconds = in_turns(ways, rounds=rounds)
    how = f"InfoNCE, {rows:,} x {WIDTH}, forward and backward, over the plain form"
    name = f"loss/info_nce_to_plain_{rows}"
    return ratio_figure(name, seconds["ours"], seconds["plain"], goal=1.1, how=how, better="lower")
