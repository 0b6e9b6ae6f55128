"""Configuration keys that every task has: type, range and meaning. Each task adds its own in a file beside this one.

All sections refuse unknown keys. Rules that join several of these keys stand in `rules.py`.
"""

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

EngineName = Literal["ddp", "zero1", "zero2", "zero3", "fsdp2"]
Share = Annotated[float, Field(ge=0, le=1)]
INTERVAL = re.compile(r"^([1-9]\d*) (step|epoch)s?$")


class Section(BaseModel):
    """A mapping in the configuration file: immutable, strict about types, closed to unknown keys."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def _is_interval(value: Any) -> Any:
    """Also for a number alone, the likeliest slip, of which pydantic would say no more than that it is no text."""
    if not (isinstance(value, str) and INTERVAL.match(value)):
        raise PydanticCustomError("interval", "no interval")
    return value


Interval = Annotated[
    str, BeforeValidator(_is_interval), Field(pattern=INTERVAL.pattern, examples=["500 steps", "1 epoch"])
]


def interval_in_steps(interval: str, steps_per_epoch: int) -> int:
    """`500 steps` or `2 epochs` as a number of steps."""
    found = INTERVAL.match(interval)
    assert found, interval  # the schema has checked it
    return int(found[1]) * (steps_per_epoch if found[2] == "epoch" else 1)


def as_switch(value: Any) -> Any:
    """`on` and `off` for the booleans that other YAML readers make of these words."""
    return ("off", "on")[value] if isinstance(value, bool) else value


class DataSection(Section):
    path: str
    """A dataset folder written by `accel-train import`; for images with captions also a folder with TSV or LMDB files of
    Chinese-CLIP, read in place. `sample:emoji-zh` is the dataset inside this package."""
    train_split: str = "train"
    valid_split: str | None = "valid"
    """Split to evaluate on. null: no evaluation."""
    global_batch_size: Annotated[int, Field(ge=1)]
    """Samples in one optimizer step, over all ranks and micro-batches."""
    micro_batch_size: Annotated[int, Field(ge=1)]
    """Samples in one forward pass on one rank. Accumulation follows: global_batch_size / (micro_batch_size x ranks)."""
    shuffle: bool = True
    """False keeps the stored order in every epoch."""
    last_batch: Literal["drop", "keep"] = "drop"
    """What happens to the samples left over at an epoch's end: dropped, or trained as a smaller batch."""
    num_workers: Annotated[int, Field(ge=0)] = 2
    """Loader processes on each rank. 0 loads in the training process."""
    worker_start_method: Literal["fork", "spawn", "forkserver"] = "fork"
    prefetch_batches: Annotated[int, Field(ge=1)] = 4
    """Micro-batches that each worker prepares ahead."""
    max_unreadable_samples: Annotated[int, Field(ge=0)] = 0
    """How often a run may skip a sample because it can't be read; one that is met in two epochs counts twice. One more
    stops the run."""


class Tower(Section):
    """Layers that share a base learning rate, listed from input to output."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    layers: str | list[str]
    """A named layer list (convnext, bert, ...), or a list of regular expressions over parameter names, from input to
    output; a named list may be one of its entries. Each `(\\d+)` makes one layer for every number it meets. The first
    tower and pattern that match a parameter own it."""
    lr: Annotated[float, Field(ge=0)]
    """Learning rate of the last layer. 0 freezes the tower."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Each layer learns at this times the rate of the layer above it."""
    train_last: Annotated[int, Field(ge=1)] | None = None
    """Train only the last so many layers; the rest is frozen and stays in eval mode. null: all."""
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    """Overrides optimizer.weight_decay for this tower."""
    max_grad_norm: Annotated[float, Field(gt=0)] | None = None
    """Clips the gradient norm of this tower alone."""


class LrScalingSection(Section):
    """For learning rates that were chosen at another batch size."""

    rule: Literal["linear", "square_root"]
    """Every tower's rate is multiplied by global_batch_size / base_batch_size, or by the square root of that."""
    base_batch_size: Annotated[int, Field(ge=1)]
    """The global batch size that the towers' rates are meant for."""


class OptimizerSection(Section):
    name: Literal["adamw", "adam", "sgd", "lion"] = "adamw"
    betas: list[Annotated[float, Field(ge=0, lt=1)]] = Field([0.9, 0.98], min_length=2, max_length=2)
    """For adamw, adam and lion."""
    eps: Annotated[float, Field(gt=0)] = 1e-6
    """For adamw and adam."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """For sgd."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    no_decay: Literal["vectors", "chinese_clip", "none"] = "vectors"
    """What is exempt from weight decay. `vectors`: every parameter of at most one dimension (biases, norms, logit_scale).
    `chinese_clip`: the original trainer's rule by name. `none`: nothing."""
    no_decay_layers: list[str] = []
    """Regular expressions over parameter names that are exempt too, for example embeddings."""
    max_grad_norm: Annotated[float, Field(gt=0)] | None = None
    """Clips the gradient norm over all parameters, after the towers' own clipping."""
    lr_scaling: LrScalingSection | None = None
    """Scale all learning rates with the batch size. null: they are as written."""
    towers: list[Tower] = Field(min_length=1)


class ScheduleSection(Section):
    """The learning rate of every group is its base rate times one scale, a function of the step."""

    name: Literal["constant", "linear", "cosine", "step", "cyclic"] = "cosine"
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    """Steps of linear warmup. At most one of `warmup_steps` and `warmup_ratio`."""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Warmup as a share of all steps."""
    min_lr_ratio: Share = 0.0
    """Lowest scale after warmup, for linear, cosine, step and cyclic."""
    step_every: Interval | None = None
    """For `step`: the interval after which the scale is multiplied by `step_factor`."""
    step_factor: Annotated[float, Field(gt=0, lt=1)] | None = None
    cycle_length: Interval | None = None
    """For `cyclic`: the length of one triangle, down and up again."""


class TowerChange(Section):
    """What a phase changes of a tower; a key left out stays as it was in the phase before."""

    name: str
    """A tower of optimizer.towers."""
    lr: Annotated[float, Field(ge=0)] | None = None
    """0 freezes the tower."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    train_last: Annotated[int, Field(ge=1)] | Literal["all"] | None = None
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    max_grad_norm: Annotated[float, Field(gt=0)] | None = None


class PhaseSection(Section):
    """A later part of the run, with other towers in training or another schedule.

    The run begins as `optimizer` and `schedule` say. Parameters that go on training keep their optimizer state.
    """

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    start: Interval
    """How far into the run the phase begins, for example `10 epochs`."""
    towers: list[TowerChange] = []
    schedule: ScheduleSection | None = None
    """A schedule of its own, counted from the phase's start. null: the one before goes on."""


class EarlyStopping(Section):
    patience: Annotated[int, Field(ge=1)]
    """Evaluations without a better score before the run ends."""
    min_delta: Annotated[float, Field(ge=0)] = 0.0
    """How much better a score must be to count."""


class EvaluationSection(Section):
    evaluate_every: Interval | None = "1 epoch"
    """null: only at the start and the end."""
    at_start: bool = True
    """Evaluate before the first step, so that a fine-tune that gets worse is noticed."""
    batch_size: Annotated[int, Field(ge=1)] | None = None
    """Samples in one forward pass on one rank. null: data.micro_batch_size."""
    best_score: str | None = None
    """The score that decides `checkpoints/best` and early stopping; higher is better. null: the first one that the task
    gives, for example mean_recall."""
    early_stopping: EarlyStopping | None = None


class CheckpointSection(Section):
    save_every: Interval | None = "1 epoch"
    """null: only at the end and when a signal asks the run to stop."""
    keep_last: Annotated[int, Field(ge=1)] = 2
    """Newest checkpoints kept. The one with the best score is kept beside them."""
    in_background: bool = False
    """Train on while a checkpoint is written. It takes host memory of the size of this rank's part."""


class NonfiniteSection(Section):
    """What happens when a loss or a gradient is not finite: all ranks skip that step. An overflow of fp16 is not meant."""

    max_in_a_row: Annotated[int, Field(ge=0)] = 3
    """So many steps in a row may be skipped; one more is too many. 0: the first one is."""
    then: Literal["stop", "rollback"] = "stop"
    """When there were too many: stop the run, or go on from the last checkpoint before them."""
    lr_factor: Annotated[float, Field(gt=0, le=1)] = 0.5
    """For `rollback`: what every learning rate is multiplied by afterwards."""
    lr_window: Interval = "200 steps"
    """For how long, counted from the checkpoint."""
    max_rollbacks: Annotated[int, Field(ge=1)] = 3
    """So often in a run; when it would be once more, the run stops."""


class LogSection(Section):
    log_every: Interval = "10 steps"
    trackers: list[str] = []
    """Trackers that Accelerate knows, for example [tensorboard]."""


class ComputeSection(Section):
    activation_checkpointing: bool = False
    """Recompute each repeated block in the backward pass instead of storing its activations."""
    kept_graphs: Annotated[int, Field(ge=1)] = 1
    """For losses over the whole batch: how many micro-batches of a step keep the activations of their first forward pass,
    and so need no second one. Each takes the memory of one micro-batch; with all of them a step costs no more than an
    uncached one."""
    compile: bool = False
    """torch.compile each repeated block."""
    num_threads: Annotated[int, Field(ge=1)] | None = None
    """CPU threads of each rank. null: torch's choice, or one where torchrun sets OMP_NUM_THREADS."""


class ZeroSection(Section):
    offload_optimizer: bool = False
    """Keep optimizer state in CPU memory. For zero1, zero2 and zero3."""


class RunConfig(Section):
    """One experiment, complete in one file. A task's own configuration adds sections to this one."""

    run_dir: str
    """Folder for checkpoints, metrics and logs."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    task: str = "contrastive"
    """What is trained: a built-in task, or a class of your own as package.module:Class."""
    engine: EngineName | None = None
    """How it is spread over ranks. null: what `accelerate launch` says, else ddp."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of the forward pass. Weights, gradients and optimizer state are fp32."""
    dropout: Literal["fast", "per_sample"] = "fast"
    """`fast`: torch's own, the same for any number of ranks at a fixed micro_batch_size. `per_sample`: masks are a function
    of (seed, step, sample, module), the same under every split; slower."""
    max_steps: Annotated[int, Field(ge=1)] | None = None
    """Length in optimizer steps. Exactly one of `max_steps` and `num_epochs`."""
    num_epochs: Annotated[int, Field(ge=1)] | None = None
    max_hours: Annotated[float, Field(gt=0)] | None = None
    """Stop with a checkpoint, to be started again, before this command has run so long: for schedulers that don't signal."""
    hang_minutes: Annotated[float, Field(gt=0)] | None = 30
    """A rank that makes no headway for so long reports where each rank is, and ends the job. null: it waits for ever."""
    initialize_from: str | None = None
    """Start from the weights of another run, a checkpoint, a Hugging Face folder or a checkpoint file; step and data start
    afresh."""
    initialize_optimizer: bool = False
    """Take the optimizer's state from `initialize_from` too. false: it starts afresh."""
    data: DataSection
    optimizer: OptimizerSection
    schedule: ScheduleSection = ScheduleSection()
    phases: list[PhaseSection] = []
    """Later phases of the run, in order, for two-stage training and progressive unfreezing."""
    evaluation: EvaluationSection = EvaluationSection()
    checkpoint: CheckpointSection = CheckpointSection()
    nonfinite: NonfiniteSection = NonfiniteSection()
    log: LogSection = LogSection()
    compute: ComputeSection = ComputeSection()
    zero: ZeroSection = ZeroSection()
    advice: Annotated[Literal["on", "off"], BeforeValidator(as_switch)] = "on"
    """`off` silences the advice that `plan` and `train` give about learning rates, gradients and scores."""

    def contradictions(self) -> Iterator[str]:
        """Rules that join keys of the task's own sections: a line for each one that is broken."""
        yield from ()


def changed_keys(section: Section, *keys: str) -> list[str]:
    """The keys whose value is not their default."""
    fields = type(section).model_fields
    return [key for key in keys if getattr(section, key) != fields[key].default]


def exactly_one(where: str, section: Section, first: str, second: str) -> Iterator[str]:
    """A line if both keys are given, or neither. `where` is the section's path with a dot at its end."""
    given = [key for key in (first, second) if getattr(section, key) is not None]
    if len(given) == 2:
        values = f"{first} is {getattr(section, first)!r} and {second} is {getattr(section, second)!r}"
        yield f"{where}{first}: {values}; give exactly one of them and set the other to null."
    elif not given:
        yield f"{where}{first}: neither {first} nor {second} is given; give exactly one of them."


def optimizer_of_phase(optimizer: OptimizerSection, phase: PhaseSection) -> OptimizerSection:
    """The optimizer section with a phase's changes to its towers."""
    changes = {change.name: change for change in phase.towers}
    towers = [_changed_tower(tower, changes.get(tower.name)) for tower in optimizer.towers]
    return optimizer.model_copy(update={"towers": towers})


def _changed_tower(tower: Tower, change: TowerChange | None) -> Tower:
    if change is None:
        return tower
    given: dict[str, Any] = {key: value for key, value in change.model_dump().items() if value is not None}
    if given.get("train_last") == "all":
        given["train_last"] = None
    elif given.get("lr") == 0:
        given.setdefault("train_last", None)
    return tower.model_copy(update=given)
