"""Which keys a configuration can hold, and which of them was meant by one that it can't."""

import difflib
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from accel_train.config.schema import Section

ALIASES: dict[str, tuple[str, ...]] = {
    "accum_freq": ("micro_batch_size",),
    "accumulation_steps": ("micro_batch_size",),
    "amp": ("precision",),
    "backbone": ("architecture",),
    "batch": ("global_batch_size",),
    "batchsize": ("global_batch_size",),
    "batch_size": ("global_batch_size",),
    "bs": ("global_batch_size",),
    "checkpoint_every": ("save_every",),
    "clip_grad": ("max_grad_norm",),
    "clip_grad_norm": ("max_grad_norm",),
    "context_length": ("max_text_length",),
    "data_path": ("path",),
    "dataset": ("path",),
    "decay": ("layer_decay", "weight_decay"),
    "dtype": ("precision",),
    "embed_dim": ("projection_dim",),
    "epochs": ("num_epochs",),
    "eval_every": ("evaluate_every",),
    "grad_checkpointing": ("activation_checkpointing",),
    "grad_clip": ("max_grad_norm",),
    "gradient_accumulation_steps": ("micro_batch_size",),
    "gradient_checkpointing": ("activation_checkpointing",),
    "gradient_clipping": ("max_grad_norm",),
    "init_from": ("initialize_from",),
    "learning_rate": ("lr",),
    "llrd": ("layer_decay",),
    "log_interval": ("log_every",),
    "max_epochs": ("num_epochs",),
    "max_length": ("max_text_length",),
    "min_lr": ("min_lr_ratio",),
    "mixed_precision": ("precision",),
    "model_type": ("type",),
    "num_train_epochs": ("num_epochs",),
    "optimizer_type": ("name",),
    "output_dir": ("run_dir",),
    "per_device_train_batch_size": ("micro_batch_size",),
    "resolution": ("image_size",),
    "resume": ("run_dir",),
    "save_dir": ("run_dir",),
    "save_total_limit": ("keep_last",),
    "scheduler": ("schedule",),
    "steps": ("max_steps",),
    "total_steps": ("max_steps",),
    "val_split": ("valid_split",),
    "vision": ("image",),
    "warmup": ("warmup_steps", "warmup_ratio"),
    "wd": ("weight_decay",),
    "workers": ("num_workers",),
}
"""What other trainers call our keys, where spelling alone would not lead there."""

Path = tuple[str | int, ...]


def section_at(path: Path, values: Any, root: type[Section]) -> type[Section]:
    """The section that stands at `path` below `root`. In a tagged union, `values` (the whole mapping as read) says which
    one."""
    section = root
    for part in path:
        values = values[part]
        if isinstance(part, str):  # a number is an item of the list named before it
            choices = sections_in(section.model_fields[part].annotation)
            section = next(choice for choice in choices if _is_tagged(choice, values))
    return section


def sections_in(annotation: Any) -> list[type[Section]]:
    """The sections that a type can hold: itself, those of a union, those of a list."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    if get_origin(annotation) in (Union, types.UnionType, Annotated, list):
        return [section for part in get_args(annotation) for section in sections_in(part)]
    return []


def _is_tagged(section: type[Section], values: Any) -> bool:
    """Whether a mapping's `type` names this section. Sections without a `type` always fit."""
    tag = section.model_fields.get("type")
    if tag is None or get_origin(tag.annotation) is not Literal:
        return True
    return isinstance(values, dict) and values.get("type") in get_args(tag.annotation)


def tags_at(path: Path, values: Any, root: type[Section]) -> list[str]:
    """The values of `type` that the tagged union at `path` knows."""
    *above, name = path
    field = section_at(tuple(above), values, root).model_fields[str(name)]
    return [
        tag for section in sections_in(field.annotation) for tag in get_args(section.model_fields["type"].annotation)
    ]


def all_keys(section: type[Section], prefix: str = "") -> Iterator[str]:
    """Every dotted path below a section. List items appear as `*`."""
    for name, field in section.model_fields.items():
        yield prefix + name
        item = ".*" if get_origin(field.annotation) is list else ""
        for inner in sections_in(field.annotation):
            yield from all_keys(inner, f"{prefix}{name}{item}.")


def nearest_keys(key: str, section: type[Section], where: str, root: type[Section]) -> list[str]:
    """Paths of the keys that were probably meant: by another name or by spelling, in this section, else anywhere.

    `where` is the path of the section below `root`. Several paths come back where the same key stands in several sections.
    """
    word = key.lower().replace("-", "_")
    own = list(section.model_fields)
    prefix = f"{where}." if where else ""
    aliases = ALIASES.get(word, ())
    # A key that stands in this place only with another `type` is not offered, nor what phases repeat of other sections.
    known = [path for path in dict.fromkeys(all_keys(root)) if not path.startswith("phases.")]
    paths = [path for path in known if path.rpartition(".")[0] != where]
    for name in (word, *aliases):
        if name in own:
            return [prefix + name]
    if found := difflib.get_close_matches(word, own, n=1, cutoff=0.7):
        return [prefix + found[0]]
    for name in (*aliases, word):
        if elsewhere := [path for path in paths if path.rpartition(".")[2] == name]:
            return elsewhere
    if found := difflib.get_close_matches(word, own, n=1, cutoff=0.5):
        return [prefix + found[0]]
    by_name = {path.rpartition(".")[2]: path for path in reversed(paths)}
    return [by_name[name] for name in difflib.get_close_matches(word, by_name, n=1, cutoff=0.8)]
