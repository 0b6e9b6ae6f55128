"""Other projects' names of weights and ours, both ways."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from accel_train.errors import UserError

MOST_NAMES_IN_AN_ERROR = 8


@dataclass(frozen=True, slots=True)
class Renamed:
    """One tensor of theirs and what it is in our model."""

    theirs: str
    ours: tuple[str, ...]
    """Several names: ours are the equal parts of theirs along the first dimension (queries, keys and values)."""
    transposed: bool = False


def pairs(theirs: str, ours: str, kinds: Sequence[str] = ("weight", "bias")) -> list[Renamed]:
    """A layer's weight and bias."""
    return [Renamed(f"{theirs}.{kind}", (f"{ours}.{kind}",)) for kind in kinds]


def split_pairs(theirs: str, ours: str, parts: Sequence[str], join: str = ".") -> list[Renamed]:
    """Weight and bias of one layer that are several layers of ours: `ours.q_proj.weight`, ..."""
    return [
        Renamed(f"{theirs}{join}{kind}", tuple(f"{ours}.{part}.{kind}" for part in parts))
        for kind in ("weight", "bias")
    ]


def clip_blocks(theirs: str, ours: str, count: int) -> list[Renamed]:
    """The transformer blocks of CLIP, in the order of the original's modules."""
    table = []
    for number in range(count):
        block, layer = f"{theirs}.resblocks.{number}", f"{ours}.layers.{number}"
        table += [
            *split_pairs(f"{block}.attn.in_proj", f"{layer}.self_attn", ("q_proj", "k_proj", "v_proj"), join="_"),
            *pairs(f"{block}.attn.out_proj", f"{layer}.self_attn.out_proj"),
            *pairs(f"{block}.ln_1", f"{layer}.layer_norm1"),
            *pairs(f"{block}.mlp.c_fc", f"{layer}.mlp.fc1"),
            *pairs(f"{block}.mlp.c_proj", f"{layer}.mlp.fc2"),
            *pairs(f"{block}.ln_2", f"{layer}.layer_norm2"),
        ]
    return table


def clip_vision(blocks: int) -> list[Renamed]:
    """The ViT tower of CLIP, which Chinese-CLIP and open_clip share, and its projection."""
    return [
        Renamed("visual.class_embedding", ("vision_model.embeddings.class_embedding",)),
        Renamed("visual.positional_embedding", ("vision_model.embeddings.position_embedding.weight",)),
        Renamed("visual.proj", ("visual_projection.weight",), transposed=True),
        Renamed("visual.conv1.weight", ("vision_model.embeddings.patch_embedding.weight",)),
        *pairs("visual.ln_pre", "vision_model.pre_layrnorm"),
        *clip_blocks("visual.transformer", "vision_model.encoder", blocks),
        *pairs("visual.ln_post", "vision_model.post_layernorm"),
    ]


def to_ours(weights: Mapping[str, Tensor], table: Sequence[Renamed], source: str) -> dict[str, Tensor]:
    """Their tensors under our names, floating-point ones in fp32. Raises UserError unless the names are the table's."""
    names = {entry.theirs for entry in table}
    faults = [*_listed("missing", names - weights.keys()), *_listed("unexpected", weights.keys() - names)]
    if faults:
        raise UserError(
            f"{source}: the weights are not those of the model that their names suggest. {'; '.join(faults)}."
        )
    try:
        return {name: value for entry in table for name, value in split(weights[entry.theirs], entry).items()}
    except ValueError as error:
        raise UserError(f"{source}: {error}.") from error


def split(value: Tensor, entry: Renamed) -> dict[str, Tensor]:
    """One tensor of theirs as ours. Raises ValueError for a shape that it can't have."""
    parts = len(entry.ours)
    if (entry.transposed and value.ndim != 2) or (parts > 1 and (value.ndim == 0 or len(value) % parts)):
        raise ValueError(f"{entry.theirs} has shape {tuple(value.shape)}")
    value = value.float() if value.is_floating_point() else value
    value = value.T if entry.transposed else value
    return dict(zip(entry.ours, value.chunk(parts) if parts > 1 else (value,), strict=True))


def to_theirs(weights: Mapping[str, Tensor], table: Sequence[Renamed]) -> dict[str, Tensor]:
    """The reverse of `to_ours`. Each tensor has memory of its own."""
    found = {}
    for entry in table:
        parts = [weights[name].detach().cpu() for name in entry.ours]
        value = torch.cat(parts) if len(parts) > 1 else parts[0]
        found[entry.theirs] = (value.T if entry.transposed else value).clone(memory_format=torch.contiguous_format)
    return found


def _listed(kind: str, names: set[str]) -> list[str]:
    shown = sorted(names)[:MOST_NAMES_IN_AN_ERROR]
    return [f"{kind}: {', '.join(shown)}{' …' if len(names) > len(shown) else ''}"] if names else []
