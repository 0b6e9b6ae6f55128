"""The pieces of training state that one rank holds, named alike under every engine."""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(slots=True)
class Shard:
    """A contiguous piece of one parameter, flattened, with the optimizer's state for it.

    Tensors are one-dimensional views of the engine's own storage: writing into them loads a checkpoint.
    """

    name: str
    shape: tuple[int, ...]
    """Shape of the whole parameter."""
    offset: int
    """Place of the piece in the flattened parameter."""
    weight: Tensor
    state: dict[str, Tensor] = field(default_factory=dict)
    """Optimizer state by name, each as long as `weight`. Empty for frozen parameters."""
    replicated: bool = False
    """True where every rank holds the same piece, so that one of them is enough."""
