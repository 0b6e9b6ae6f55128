"""Reading .pt and .safetensors files that others wrote, without running anything that is in them.

torch.load(weights_only=True) builds tensors and plain containers alone. The original Chinese-CLIP trainer also stores
NumPy's scalar numbers (the learning rate). NumPy's own functions are not let in for them, because a made-up dtype could
mislead these: the two names are bound to the functions below, which know a handful of number formats and nothing else.
"""

import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from accel_train.errors import UserError

_FORMATS = {"f8": "<d", "f4": "<f", "f2": "<e", "i8": "<q", "i4": "<i", "u8": "<Q", "u4": "<I", "b1": "<?"}
"""NumPy's codes for number formats, and the struct module's."""


class _NumberFormat:
    """What `numpy.dtype` means in a file."""

    def __init__(self, code: str, align: bool = False, copy: bool = False) -> None:
        if code not in _FORMATS:
            raise pickle.UnpicklingError(f"numpy.dtype({code!r}) is not a number format")
        self.code = code

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] not in ("<", "=", "|"):
            raise pickle.UnpicklingError("numbers are big-endian")


def _number(kind: _NumberFormat, data: bytes) -> float:
    """What NumPy's `scalar` means in a file: a plain Python number."""
    if not isinstance(kind, _NumberFormat) or not isinstance(data, bytes):
        raise pickle.UnpicklingError("a NumPy scalar is neither a format nor bytes")
    number: float = struct.unpack(_FORMATS[kind.code], data)[0]
    return number


_NUMPY_NUMBERS: list[Any] = [
    (_NumberFormat, "numpy.dtype"),
    (_number, "numpy.core.multiarray.scalar"),
    (_number, "numpy._core.multiarray.scalar"),
]


def read_torch_file(path: str, where: str) -> dict[str, Any]:
    """The mapping in a file of torch.save: tensors, plain numbers, strings and containers of these.

    Tensors stay on disk until they are used, where the file's format allows it. `where` is the key path of errors.
    Raises UserError for a file that is missing or damaged, or that holds anything else.
    """
    if not Path(path).is_file():
        raise UserError(f"{where}: there is no file {path}.")
    try:
        with torch.serialization.safe_globals(_NUMPY_NUMBERS):
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged or hostile file can break the reader at any point, in any way
        raise UserError(
            f"{where}: {path} is not read: {_reason(error)}. Only tensors, plain numbers and strings are taken from a file, "
            "because a pickle can run any program. Save the state dict alone with torch.save or safetensors."
        ) from error
    if not isinstance(found, dict):
        raise UserError(f"{where}: {path} holds a {type(found).__name__}, not a mapping with weights.")
    return found


def read_weights(path: str, where: str) -> dict[str, Tensor]:
    """Names and tensors of a checkpoint file: its `state_dict`, or the whole file; `module.` prefixes are taken off.

    Raises UserError where something else is among them.
    """
    if path.endswith(".safetensors"):
        return _read_safetensors(path, where)
    found = read_torch_file(path, where)
    weights = found.get("state_dict", found)
    if not isinstance(weights, dict) or not weights:
        raise UserError(f"{where}: {path} holds no weights.")
    for name, value in weights.items():
        if not isinstance(name, str) or not isinstance(value, Tensor) or not has_its_values(value):
            raise UserError(f"{where}: {path} holds {name!r} ({type(value).__name__}) where tensors are expected.")
    return {name.removeprefix("module."): value.detach() for name, value in weights.items()}


def has_its_values(tensor: Tensor) -> bool:
    """Whether it is a plain tensor with a place in memory for each element. Views can claim any size for one number."""
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _read_safetensors(path: str, where: str) -> dict[str, Tensor]:
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{where}: {path} can't be read. {error}") from error
    return {name.removeprefix("module."): value for name, value in weights.items()}


def _reason(error: Exception) -> str:
    """The part of torch's message that names the fault, without its advice to load the file unsafely."""
    text = " ".join(str(error).split())
    for advice in ("from a trusted source. ", "WeightsUnpickler error: "):
        text = text.rpartition(advice)[2]
    for advice in (" Please use", " Check the documentation"):
        text = text.partition(advice)[0]
    return text.rstrip(". ") or type(error).__name__
