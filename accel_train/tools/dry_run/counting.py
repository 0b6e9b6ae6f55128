"""Counts what a program of torch operations would hold and compute, from the operations themselves.

Inside torch's FakeTensorMode nothing is held and nothing computed, so a step of any size can be counted on a laptop.
"""

import weakref
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, shape_wrapper

from accel_train.tools.operation_flops import OWN_FORMULAS

aten = torch.ops.aten
DEVICE = torch.ops.prim.device.default
"""Autograd asks for a tensor's device twice for each operation, through every mode: of a fake tensor that is known."""
CONVOLUTIONS = {aten.convolution, aten._convolution, aten.convolution_backward}
FORMULAS = flop_registry | {packet: shape_wrapper(formula) for packet, formula in OWN_FORMULAS.items()}
PRODUCTS = ("matmul", "attention", "convolution", "convolution_backward", "depthwise", "depthwise_backward")
"""Operations that are measured in floating-point operations. Depthwise: a convolution by groups. A convolution's backward
kernels run at speeds of their own."""
DEAR = {
    "gelu",
    "_softmax",
    "_log_softmax",
    "exp",
    "tanh",
    "sigmoid",
    "silu",
    "logsumexp",
    "native_layer_norm",
    "erf",
    "bernoulli",
}
"""Element-wise operations that cost more arithmetic than memory on a CPU, by name, with their backward passes."""


class Work(NamedTuple):
    """One kind of operation of one size."""

    phase: str
    kind: str
    """One of PRODUCTS, or dear or plain (both element-wise)."""
    dtype: str
    size: int
    """Floating-point operations of a product; bytes read and written by the others."""


class Counting(TorchDispatchMode):
    """Bytes that are alive by label, their peak, and the work done by phase.

    `label` and `phase` say what the next operations' results are and to what part of a step they belong. A storage keeps the
    label that it was made under until `watch` gives it another.
    """

    def __init__(self) -> None:
        super().__init__()
        self.label = "activations"
        self.phase = "forward"
        self.now: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.at_peak: Counter[str] = Counter()
        self.peak = 0
        self.work: Counter[Work] = Counter()
        self._total = 0
        self._alive: dict[int, tuple[weakref.ref[Any], str, int]] = {}
        self._ignored: dict[int, Any] = {}

    def ignore(self, tensor: Tensor) -> None:
        """Leaves a tensor's storage out of the account, for the time of this count."""
        storage = tensor.untyped_storage()
        self._ignored[storage._cdata] = storage

    def watch(self, tensor: Tensor, label: str) -> None:
        """Counts a tensor's storage under a label, from now until it is freed."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._alive:
            _, before, size = self._alive[key]
            self._change(before, -size)
        elif key in self._ignored:
            return
        size = storage.nbytes()
        self._alive[key] = (weakref.ref(storage, lambda _: self._freed(key)), label, size)
        self._change(label, size)

    def hold(self, label: str, num_bytes: int) -> None:
        """Counts memory for which there is no tensor; a negative number takes it back."""
        self._change(label, num_bytes)

    def repeat(self, phase: str, other: str) -> None:
        """Counts the work of a phase once more, as that of another one."""
        for work, times in list(self.work.items()):
            if work.phase == phase:
                self.work[work._replace(phase=other)] += times

    def end(self) -> None:
        """Keeps the figures, and is told of no storage that is freed later."""
        self._alive.clear()
        self._ignored.clear()

    def _freed(self, key: int) -> None:
        _, label, size = self._alive.pop(key)
        self._change(label, -size)

    def _change(self, label: str, num_bytes: int) -> None:
        self.now[label] += num_bytes
        self._total += num_bytes
        self.most[label] = max(self.most[label], self.now[label])
        if self._total > self.peak:
            self.peak, self.at_peak = self._total, self.now.copy()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is DEVICE:
            return args[0].fake_device
        result = func(*args, **(kwargs or {}))
        if func.is_view:
            return result
        packet = func.overloadpacket
        if work := self._work_of(packet, args, kwargs or {}, result):
            self.work[work] += 1
        for tensor in tensors(result):
            key = tensor.untyped_storage()._cdata
            if key not in self._alive and key not in self._ignored:
                self.watch(tensor, self.label)
        return result

    def _work_of(self, packet: Any, args: Any, kwargs: Any, result: Any) -> Work | None:
        inputs = list(tensors((args, kwargs)))
        if not inputs:
            return None
        dtype = str(inputs[0].dtype).removeprefix("torch.")
        if packet in FORMULAS:
            flops = int(FORMULAS[packet](*args, **kwargs, out_val=result))
            return Work(self.phase, _kind_of_product(packet, args), dtype, flops)
        name = str(packet).removeprefix("aten.").removesuffix("_backward").removesuffix("_")
        moved = sum(tensor.numel() * tensor.element_size() for tensor in (*inputs, *tensors(result)))
        return Work(self.phase, "dear" if name in DEAR else "plain", dtype, moved)


def tensors(tree: Any) -> Iterator[Tensor]:
    """Those of an operation's or a module's arguments or results, in their order."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for part in tree:
            yield from tensors(part)
    elif isinstance(tree, Mapping):
        for part in tree.values():
            yield from tensors(part)


def _kind_of_product(packet: Any, args: Any) -> str:
    if "attention" in str(packet):
        return "attention"
    if packet not in CONVOLUTIONS:
        return "matmul"
    backward = packet is aten.convolution_backward
    name = "depthwise" if args[9 if backward else 8] > 1 else "convolution"
    return f"{name}_backward" if backward else name
