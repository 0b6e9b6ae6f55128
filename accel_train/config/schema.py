"""Every configuration key, its type, its range and its meaning. The JSON schema for editors is made from this file.

All sections refuse unknown keys. Rules that join several keys stand in `rules.py`.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

EngineName = Literal["ddp", "zero1", "zero2", "zero3", "fsdp2"]
Share = Annotated[float, Field(ge=0, le=1)]
INTERVAL = re.compile(r"^([1-9]\d*) (step|epoch)s?$")


class Section(BaseModel):
    """A mapping in the configuration file: immutable, strict about types, closed to unknown keys."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


Interval = Annotated[str, Field(pattern=INTERVAL.pattern, examples=["500 steps", "1 epoch"])]


def interval_in_steps(interval: str, steps_per_epoch: int) -> int:
    """`500 steps` or `2 epochs` as a number of steps."""
    found = INTERVAL.match(interval)
    assert found, interval  # the schema has checked it
    return int(found[1]) * (steps_per_epoch if found[2] == "epoch" else 1)


class Backbone(Section):
    """One tower of a dual encoder: any vision or BERT-like text model of transformers."""

    pretrained: str | None = None
    """A Hugging Face folder with weights. Exactly one of `pretrained` and `architecture`."""
    architecture: str | None = None
    """A transformers model type (vit, convnext, resnet, dinov2, bert) with random weights."""
    config: dict[str, Any] = {}
    """Values of the architecture's own configuration, for example `num_hidden_layers: 2`. Only with `architecture`."""


class ModelSection(Section):
    attention: Literal["sdpa", "flash_attention_2", "eager"] | None = None
    """Attention implementation. Left out: the model's own default (sdpa where it has one)."""
    batch_norm: Literal["refuse", "frozen", "local"] = "refuse"
    """What to do with BatchNorm layers that would train. Their batch statistics depend on how a batch is split, so the
    default refuses them. `frozen` keeps the running statistics in eval mode; `local` trains on statistics of each
    micro-batch and gives up split invariance."""
    temperature: Annotated[float, Field(gt=0)] | None = None
    """Temperature at the start; logit_scale is the log of its inverse. Left out: what the weights or model hold (0.07 for
    random weights)."""
    learn_temperature: bool = True
    """False freezes logit_scale (and logit_bias) at the start value."""
    max_logit_scale: Annotated[float, Field(gt=0)] | None = 100.0
    """logit_scale is clamped to at most this where it is used; the gradient passes through. null: no clamp."""


class ClipModelSection(ModelSection):
    """A CLIP-like model of transformers, both towers in one checkpoint."""

    type: Literal["chinese_clip", "clip", "siglip"]
    pretrained: str | None = None
    """A Hugging Face folder with weights. Exactly one of `pretrained` and `size`."""
    size: str | None = None
    """A named size with random weights, for example `vit_b_16`; `tiny` for tests."""
    config: dict[str, Any] = {}
    """Changes to the named size's configuration, for example `text_config: {vocab_size: 500}`. Only with `size`."""


class DualEncoderSection(ModelSection):
    """An image backbone and a text backbone with a projection head each."""

    type: Literal["dual_encoder"]
    image: Backbone
    text: Backbone
    projection_dim: Annotated[int, Field(ge=1)] = 512
    """Width of image_features and text_features."""
    text_pooling: Literal["attention", "pooler", "cls", "mean"] = "attention"
    """How text tokens become one vector: learnt attention over the tokens, BERT's pooler, the first token, the mean."""


class Augmentation(Section):
    """Training-time augmentation; each draw is a function of (seed, epoch, sample)."""

    crop_scale: list[Share] | None = Field(None, min_length=2, max_length=2)
    """RandomResizedCrop: smallest and largest share of the image's area, for example [0.9, 1.0]. null: no crop."""
    crop_aspect: list[Annotated[float, Field(gt=0)]] = Field([0.75, 4 / 3], min_length=2, max_length=2)
    """Smallest and largest aspect ratio of a crop."""
    horizontal_flip: Share = 0.0
    """Probability of a left-right flip."""
    mask_tokens: Share = 0.0
    """Probability for each text token to be replaced by the tokenizer's mask token."""


class DataSection(Section):
    path: str
    """A dataset folder written by `accel-train import`; `sample:emoji-zh` is the one inside this package."""
    train_split: str = "train"
    valid_split: str | None = "valid"
    """Split to evaluate on. null: no evaluation."""
    tokenizer: str
    """A folder with a tokenizer, or a WordPiece vocabulary file. `dataset:tokenizer` is the one `import` built."""
    max_text_length: Annotated[int, Field(ge=4)] = 52
    """Tokens a caption is cut or padded to, special tokens included."""
    text_cleaning: Literal["none", "chinese_clip"] = "none"
    """`chinese_clip` lower-cases captions and straightens curly double quotes before tokenising, as the original trainer
    did for the published weights."""
    image_size: Annotated[int, Field(ge=8)] = 224
    """Height and width in pixels."""
    resize: Literal["squash", "crop"] = "squash"
    """`squash` scales both sides to image_size; `crop` scales the short side and takes the centre."""
    image_mean: list[float] = Field([0.48145466, 0.4578275, 0.40821073], min_length=3, max_length=3)
    image_std: list[Annotated[float, Field(gt=0)]] = Field(
        [0.26862954, 0.26130258, 0.27577711], min_length=3, max_length=3
    )
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
    augmentation: Augmentation = Augmentation()


class LossSection(Section):
    name: Literal["info_nce", "sigmoid"] = "info_nce"
    positives: Literal["shared", "own"] = "shared"
    """`shared`: rows with the same image or the same caption are positives of each other. `own`: each row has itself
    alone as a positive (the plain form, as in CLIP)."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    chunk_size: Annotated[int, Field(ge=1)] = 1024
    """Rows of the similarity matrix that are held at once."""


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
    best_score: str = "mean_recall"
    """The score that decides `checkpoints/best` and early stopping; higher is better."""
    early_stopping: EarlyStopping | None = None


class CheckpointSection(Section):
    save_every: Interval | None = "1 epoch"
    """null: only at the end and when a signal asks the run to stop."""
    keep_last: Annotated[int, Field(ge=1)] = 2
    """Newest checkpoints kept. The one with the best score is kept beside them."""


class LogSection(Section):
    log_every: Interval = "10 steps"
    trackers: list[str] = []
    """Trackers that Accelerate knows, for example [tensorboard]."""


class ComputeSection(Section):
    activation_checkpointing: bool = False
    """Recompute each repeated block in the backward pass instead of storing its activations."""
    compile: bool = False
    """torch.compile each repeated block."""
    num_threads: Annotated[int, Field(ge=1)] | None = None
    """CPU threads of each rank. null: torch's choice, or one where torchrun sets OMP_NUM_THREADS."""


class ZeroSection(Section):
    offload_optimizer: bool = False
    """Keep optimizer state in CPU memory. For zero1, zero2 and zero3."""


class RunConfig(Section):
    """One experiment, complete in one file."""

    run_dir: str
    """Folder for checkpoints, metrics and logs."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    task: str = "contrastive"
    """What is trained: contrastive."""
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
    initialize_from: str | None = None
    """Start from the weights of another run, checkpoint or Hugging Face folder; step, data and optimizer start afresh."""
    model: ClipModelSection | DualEncoderSection = Field(discriminator="type")
    data: DataSection
    loss: LossSection = LossSection()
    optimizer: OptimizerSection
    schedule: ScheduleSection = ScheduleSection()
    evaluation: EvaluationSection = EvaluationSection()
    checkpoint: CheckpointSection = CheckpointSection()
    log: LogSection = LogSection()
    compute: ComputeSection = ComputeSection()
    zero: ZeroSection = ZeroSection()
