"""Which of a model's outputs hang on so little that their graphs may wait for the whole batch: heads on frozen towers."""

import math
from collections.abc import Collection, Iterator

from torch import Tensor, nn
from torch.autograd.graph import Node

LIGHT = 16
"""A graph of results up to so many times the output's own size is kept. A block of a transformer has more for each token."""
DEEPEST = 4
"""So many operations on parameters alone, a cast and a transposition say, are seen as such."""


def has_frozen(model: nn.Module) -> bool:
    """Whether there is anything that a head may be on: without it no output of a deep model is light."""
    return not all(parameter.requires_grad for parameter in model.parameters())


def light_outputs(outputs: dict[str, Tensor], names: Collection[str]) -> frozenset[str]:
    """Those of the names whose output is learnt and light."""
    return frozenset(name for name in names if name in outputs and is_light(outputs[name]))


def all_light(outputs: dict[str, Tensor], light: Collection[str]) -> bool:
    """Whether no learnt output but these is there."""
    return all(name in light for name, value in outputs.items() if value.requires_grad)


def is_light(output: Tensor) -> bool:
    """Whether the results between the trained parameters and this output, (n, ...), take little memory.

    A projection on a frozen tower is light, a trained tower isn't. Sizes grow with n alike, so ranks of the same model agree
    however many rows each of them has. One without a graph is not light: there is nothing to keep.
    """
    if output.grad_fn is None:
        return False
    room = LIGHT * output.numel()
    for node in _nodes(output.grad_fn):
        room -= sum(math.prod(result.shape) for result in node._input_metadata)
        if room < 0:
            return False
    return True


def _nodes(root: Node) -> Iterator[Node]:
    """The operations of a graph, without those on parameters alone, such as a cast, whose results don't grow with rows."""
    seen = set[Node]()
    waiting: list[Node | None] = [root]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen or _is_of_parameters(node):
            continue
        seen.add(node)
        yield node
        waiting += [before for before, _ in node.next_functions]


def _is_of_parameters(node: Node, depth: int = DEEPEST) -> bool:
    if node.name() == "torch::autograd::AccumulateGrad":
        return True
    if depth == 0 or not node.next_functions:
        return False
    return all(before is not None and _is_of_parameters(before, depth - 1) for before, _ in node.next_functions)
