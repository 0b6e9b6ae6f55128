"""How far apart two sets of named tensors are."""

from torch import Tensor

NOISE_FLOOR = 1e-3
"""Of the largest tensor's norm. The gradient of a key's bias is zero in exact arithmetic: what is left is rounding, and
an error relative to it would mean nothing."""


def worst_relative_error(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> tuple[float, str]:
    """Norm of the difference over the norm, of the worst tensor, and its name."""
    assert found.keys() == wanted.keys()
    floor = NOISE_FLOOR * max(float(tensor.norm()) for tensor in wanted.values())
    sizes = {name: max(float(tensor.norm()), floor) for name, tensor in wanted.items()}
    errors = {name: float((found[name] - tensor).norm()) / sizes[name] for name, tensor in wanted.items()}
    worst = max(errors, key=lambda name: errors[name])
    return errors[worst], worst


def worst_difference(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> tuple[float, str]:
    """Largest absolute difference of any element, and the tensor's name."""
    assert found.keys() == wanted.keys()
    differences = {name: float((found[name] - tensor).abs().max()) for name, tensor in wanted.items()}
    worst = max(differences, key=lambda name: differences[name])
    return differences[worst], worst
