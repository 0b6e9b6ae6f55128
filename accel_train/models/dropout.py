"""Dropout whose masks are a function of (key, sample, place in the model), and of nothing else.

The same sample is masked alike however its batch is split over ranks and micro-batches, and again when activation
checkpointing or a second pass computes it anew. Random bits come from SplitMix64 (Steele, Lea and Flood 2014) as a
counter-based generator: bits = mix(stream(key, sample, module, call) + element x gamma).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask

from accel_train.errors import UserError

ATTENTION_NAME = "per_sample_dropout"
MAX_LENGTH = 2**20
"""Longest sequence whose attention weights all have masks of their own."""
ATTENTION_DROPOUT_KEYS = ("attention_probs_dropout_prob", "attention_dropout")

# Constants of SplitMix64 as signed 64-bit integers.
_GAMMA = -0x61C8864680B583EB
_MIX_1 = -0x40A7B892E31B1A47
_MIX_2 = -0x6B2FB644ECCEEE15

_UNSUPPORTED = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout, nn.RReLU)


class _Masks:
    """The streams in force. One plain object for the whole process: autograd's threads must see it too."""

    streams: Tensor | None = None


_ACTIVE = _Masks()


@contextmanager
def per_sample_masks(sample_ids: Tensor, key: int) -> Iterator[None]:
    """Forward and backward of one micro-batch, row i being sample sample_ids[i], under masks drawn from `key`.

    Raises RuntimeError at the end if anything drew from torch's own generators meanwhile: it would differ between splits.
    """
    before, states = _ACTIVE.streams, _generator_states()
    _ACTIVE.streams = _mix(_mix(torch.full_like(sample_ids, _signed(key))) + sample_ids * _GAMMA)
    try:
        yield
    finally:
        _ACTIVE.streams = before
    if any(not torch.equal(old, new) for old, new in zip(states, _generator_states(), strict=True)):
        raise RuntimeError(
            "dropout is per_sample, but the model drew random numbers from torch's own generator: something random in it "
            "is neither dropout, DropPath nor attention dropout. Set its rate to 0, or dropout=fast."
        )


def install_per_sample_dropout(model: nn.Module) -> None:
    """Makes every dropout, DropPath and attention dropout of a model take its masks from `per_sample_masks`.

    Call it before `checkpoint_activations`. Raises UserError for random modules that it can't replace.
    """
    _refuse_unsupported(model)
    sites = {module: site for site, (_, module) in enumerate(sorted(model.named_modules()))}
    for name, module in model.named_modules():
        if isinstance(module, PreTrainedModel):
            _route_attention(module, sites)
        calls = _Calls()
        rates = {child: rate for child in module.children() if (rate := _drop_rate(child)) is not None}
        for child, rate in rates.items():
            whole_sample = not isinstance(child, nn.Dropout)
            child.forward = _keyed_forward(child, rate, sites[child], calls, whole_sample)
        if rates:
            if "forward" in vars(module):
                raise RuntimeError(f"{name}: install per-sample dropout before activation checkpointing.")
            module.forward = _counting(module.forward, calls)


class _Calls:
    """How often the dropout modules of one parent have run since the parent's forward began."""

    def __init__(self) -> None:
        self.count = 0


def _counting(forward: Callable[..., Any], calls: _Calls) -> Callable[..., Any]:
    # Some blocks call one dropout module twice. Counting from the start of the parent's forward tells the calls apart
    # and gives the same numbers when checkpointing runs that forward again.
    def run(*args: Any, **kwargs: Any) -> Any:
        calls.count = 0
        return forward(*args, **kwargs)

    return run


def _keyed_forward(
    module: nn.Module, rate: float, site: int, calls: _Calls, whole_sample: bool
) -> Callable[[Tensor], Tensor]:
    def forward(values: Tensor) -> Tensor:
        if rate == 0 or not module.training:
            return values
        calls.count += 1
        shape = (len(values), *[1] * (values.ndim - 1)) if whole_sample else values.shape
        return _drop(values, shape, rate, site, calls.count)

    return forward


def per_sample_bits(count: int, device: torch.device) -> Tensor | None:
    """(n, count) random 64-bit integers, a function of (key, sample) alone, unlike those of every dropout module.

    None where no `per_sample_masks` are in force.
    """
    if _ACTIVE.streams is None:
        return None
    return _bits(
        _ACTIVE.streams.to(device), torch.arange(count, device=device), site=-1, call=0
    )  # modules have sites from 0


def _drop(values: Tensor, mask_shape: Sequence[int], rate: float, site: int, call: int) -> Tensor:
    """Zeroes elements, or whole samples, with probability `rate`, and scales up the rest."""
    streams = _ACTIVE.streams
    if streams is None:
        raise RuntimeError("dropout is per_sample, but no per_sample_masks are in force.")
    if len(streams) != len(values):
        raise RuntimeError(f"per-sample dropout got {len(values)} rows for {len(streams)} samples.")
    keep = _keep_mask(streams.to(values.device), mask_shape, rate, site, call)
    return torch.where(keep, values / (1 - rate), torch.zeros((), dtype=values.dtype, device=values.device))


# One opaque operation: traced into the softmax before it, the generator gave wrong and crashing CPU kernels (torch 2.13).
@torch.library.custom_op("accel_train::keep_mask", mutates_args=())
def _keep_mask(streams: Tensor, shape: Sequence[int], rate: float, site: int, call: int) -> Tensor:
    """streams (n,) and a shape (n, ...) to booleans that are False with probability `rate`."""
    bits = _bits(streams, _places(shape[1:], streams.device), site, call)
    return (((bits >> 40) & 0xFFFFFF) >= round(rate * 2**24)).view(shape)


def _bits(streams: Tensor, places: Tensor, site: int, call: int) -> Tensor:
    """streams (n,) and places (count,) to (n, count) random 64-bit integers."""
    start = _mix(streams + _signed((site * 64 + call) * _GAMMA))
    return _mix(start[:, None] + places * _GAMMA)


def _places(shape: Sequence[int], device: torch.device) -> Tensor:
    """A number for each element of one sample, flat: the same one however far the sample is padded.

    (L, D) is counted row by row, to which padding adds at the end; in (heads, L, L) there is room for MAX_LENGTH columns.
    """
    if len(shape) != 3:
        return torch.arange(math.prod(shape), device=device)
    outer, rows, columns = (torch.arange(size, device=device) for size in shape)
    return ((outer[:, None, None] * MAX_LENGTH + rows[:, None]) * MAX_LENGTH + columns).flatten()


@_keep_mask.register_fake
def _(streams: Tensor, shape: Sequence[int], rate: float, site: int, call: int) -> Tensor:
    return streams.new_empty(shape, dtype=torch.bool)


def _mix(bits: Tensor) -> Tensor:
    """SplitMix64's finaliser, element by element. The masks make the signed shifts logical ones."""
    bits = (bits ^ ((bits >> 30) & 0x3FFFFFFFF)) * _MIX_1
    bits = (bits ^ ((bits >> 27) & 0x1FFFFFFFFF)) * _MIX_2
    return bits ^ ((bits >> 31) & 0x1FFFFFFFF)


def _signed(number: int) -> int:
    """An integer of any size as the signed 64-bit one with the same low bits."""
    return (number + 2**63) % 2**64 - 2**63


def _drop_rate(module: nn.Module) -> float | None:
    """The rate of a dropout or DropPath module; None for everything else. transformers has one DropPath per model."""
    if isinstance(module, nn.Dropout):
        return module.p
    if type(module).__name__.endswith("DropPath"):
        return float(vars(module)["drop_prob"])
    return None


def _refuse_unsupported(model: nn.Module) -> None:
    for name, module in model.named_modules():
        random = isinstance(module, _UNSUPPORTED)
        random |= isinstance(module, (nn.MultiheadAttention, nn.RNNBase)) and module.dropout > 0
        if random:
            raise UserError(
                f"dropout is per_sample, but {name} is a {type(module).__name__}, whose random numbers can't be keyed by "
                "sample. Set its rate to 0, or dropout=fast."
            )


def _route_attention(model: PreTrainedModel, sites: dict[nn.Module, int]) -> None:
    """Attention with dropout goes through `_attention` below; attention without keeps its implementation."""
    settings = model.config.to_dict()
    if not any(settings.get(key) for key in ATTENTION_DROPOUT_KEYS):
        return
    model.config._attn_implementation = ATTENTION_NAME
    for module in model.modules():
        module.dropout_site = sites[module]


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Softmax attention of (n, heads, L, d) written out, with keyed dropout of its weights. Keys may have fewer heads.

    attention_mask is added to the scores. Returns (n, L, heads, d) and the weights, as transformers expects.
    """
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if (shared := query.shape[1] // key.shape[1]) > 1:  # LLaMA's grouped heads: several queries to one key
        key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    if dropout > 0 and module.training:
        weights = _drop(weights, weights.shape, dropout, vars(module)["dropout_site"], 0)
    return (weights @ value).transpose(1, 2).contiguous(), weights


def _generator_states() -> list[Tensor]:
    states = [torch.get_rng_state()]
    if torch.cuda.is_initialized():
        states.append(torch.cuda.get_rng_state())
    return states


AttentionInterface.register(ATTENTION_NAME, _attention)
AttentionMaskInterface.register(ATTENTION_NAME, eager_mask)
