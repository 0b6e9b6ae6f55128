"""Pages for the task `contrastive`: CLIP-like models, and dual encoders of two backbones."""

from dataclasses import dataclass

from accel_train.optim.layers import LAYER_LISTS
from accel_train.tools.init import scratch
from accel_train.tools.init.asked import (
    WHY_EPOCHS,
    Asked,
    batches,
    data_begins,
    evaluation,
    head,
    schedule,
    text_input,
    top,
)
from accel_train.tools.init.choices import FEW, MANY, SOME, Length, contrastive_batch, epochs, image_size, length
from accel_train.tools.init.page import Page, number, scalar
from accel_train.tools.init.weights import WHOLE, Weights

HEADS = r"['^visual_projection\.', '^text_projection\.']"
DUAL_HEADS = r"['^text_pooling\.', '^visual_projection\.', '^text_projection\.']"
NAMES = {"chinese_clip": "Chinese-CLIP", "clip": "CLIP", "siglip": "SigLIP", "dual_encoder": "dual encoder"}
USUAL_DEPTH = 12
IMAGE_SIZE = 224
PRETRAINED_AT_ONCE, SCRATCH_AT_ONCE = 64, 128


@dataclass(frozen=True)
class Freezing:
    """How much of a pretrained model trains, and how fast."""

    layers: str
    """What trains, in words."""
    lr: float
    layer_decay: float
    train_last: int | None
    """None: all layers, or, where lr is 0, none."""

    def tower(self, page: Page, name: str, layers: str, why: str = "") -> None:
        keys = [f"name: {name}", f"lr: {number(self.lr)}"]
        if self.lr:
            keys += [] if self.layer_decay == 1 else [f"layer_decay: {self.layer_decay:g}"]
            keys += [] if self.train_last is None else [f"train_last: {self.train_last}"]
        page.line(f"- {{{', '.join([*keys, f'layers: {layers}'])}}}", why or self.layers, depth=2)


def freezing(num_samples: int, depth: int | None) -> Freezing:
    """For one tower of a pretrained CLIP with `depth` layers. The rates are those that `accel-train plan` holds to."""
    depth = depth or USUAL_DEPTH
    if num_samples < FEW:
        return Freezing(f"fewer than {FEW:,} samples would spoil it: frozen", 0, 1, None)
    if num_samples < SOME:
        last = max(1, depth // 3)
        return Freezing(f"fewer than {SOME:,} samples: its last {last} of {depth} layers", 5e-5, 0.9, last)
    if num_samples < MANY:
        return Freezing("all layers, the lower ones more slowly", 1e-5, 0.85, None)
    return Freezing(f"{MANY:,} samples or more: all layers at the rate of Chinese-CLIP's own recipe", 3e-6, 1, None)


def clip_page(asked: Asked) -> Page:
    """A CLIP, Chinese-CLIP or SigLIP, both towers in one checkpoint."""
    page, seen = Page(), asked.seen
    source = asked.weights.get(WHOLE)
    run = None if source is None or source.run is None else source.run.model_dump(exclude_defaults=True)
    kind = "chinese_clip" if source is None else model_type(source)
    is_own = source is None or run is not None
    planned = _length(asked, few=20, usual=10)
    remarks = (
        []
        if source
        else ["No --weights were given: this trains from random weights. A pretrained model does far better."]
    )
    head(page, asked, f"{'Fine-tunes' if source else 'Trains'} a {NAMES[kind]}", remarks)
    top(page, asked, planned, WHY_EPOCHS, precision=source is not None and not is_own)
    if run is not None and source is not None:
        page.line(f"initialize_from: {scalar(source.source)}", "its weights; steps and data begin afresh")
    page.section("model")
    if source is None:
        page.line("type: chinese_clip", depth=1)
        page.line("size: tiny", "with the changes below: a model that so much data can fill", depth=1)
        page.line("config:", depth=1)
        page.values(scratch.chinese_clip(seen.num_train, asked.vocab_size), depth=2)
    elif run is not None:
        page.values(run["model"], depth=1)
    else:
        page.line(f"type: {kind}", depth=1)
        page.line(f"pretrained: {scalar(source.source)}", depth=1)
        if _is_resnet(source):
            page.line("batch_norm: frozen", "its running statistics are better than those of small batches", depth=1)
    _pair_data(page, asked, planned, source, is_own=is_own)
    if kind == "siglip":
        page.section("loss")
        page.line("name: sigmoid", "what this model was trained with", depth=1)
    if run is not None:
        optimizer(page, weight_decay=run["optimizer"].get("weight_decay", 0))
        page.values(run["optimizer"]["towers"], depth=2)
    else:
        _clip_towers(page, asked, source, kind, is_own=is_own)
    _ending(page, asked, planned, is_own=is_own)
    return page


def model_type(source: Weights) -> str:
    """`model.type` for these weights. A checkpoint file is taken for Chinese-CLIP's."""
    if source.run is not None:
        model = source.run.model_dump()["model"]
        return str(model.get("type", model.get("clip", {}).get("type")))
    return {"chinese_clip_resnet": "chinese_clip", None: "chinese_clip"}.get(source.model_type, str(source.model_type))


def _is_resnet(source: Weights) -> bool:
    return source.model_type == "chinese_clip_resnet"


def _clip_towers(page: Page, asked: Asked, source: Weights | None, kind: str, *, is_own: bool) -> None:
    optimizer(page, weight_decay=0.05 if is_own else 0.001)
    seen = asked.seen
    image_layers = "cn_clip_resnet" if source and _is_resnet(source) else f"{kind}_image"
    if source is None:
        plain = Freezing("random weights bear a high rate", 1e-3, 1, None)
        plain.tower(page, "image", image_layers)
        plain.tower(page, "text", f"{kind}_text")
        heads = 1e-3
    else:
        image = freezing(seen.num_train, source.depth("vision_config"))
        text = freezing(seen.num_train, source.depth("text_config"))
        image.tower(page, "image", image_layers)
        text.tower(page, "text", f"{kind}_text")
        heads = image.lr or 1e-3
    if kind != "siglip":
        page.line(f"- {{name: heads, lr: {number(heads)}, layers: {HEADS}}}", "into the shared space", depth=2)
    scale = r"['^logit_scale$', '^logit_bias$']" if kind == "siglip" else "['^logit_scale$']"
    page.line(f"- {{name: temperature, lr: {number(heads)}, layers: {scale}}}", depth=2)


def dual_page(asked: Asked) -> Page:
    """Two backbones with a projection head each, either of them pretrained or from random weights."""
    page, seen = Page(), asked.seen
    planned = _length(asked, few=20, usual=10)
    missing = [part for part in ("image", "text") if part not in asked.weights]
    remarks = []
    if missing:
        options = " ".join(f"--weights {part}=FOLDER" for part in missing)
        remarks = [f"Random weights: {', '.join(missing)}. A pretrained backbone does far better: {options}."]
    head(page, asked, "A dual encoder: images and captions in one space", remarks)
    top(page, asked, planned, WHY_EPOCHS, precision=not missing)
    page.section("model")
    page.line("type: dual_encoder", depth=1)
    own = {
        "image": ("convnext", scratch.convnext(seen.num_train)),
        "text": ("bert", scratch.bert(seen.num_train, asked.vocab_size)),
    }
    for part, (architecture, config) in own.items():
        if part in asked.weights:
            page.line(f"{part}: {{pretrained: {scalar(asked.weights[part].source)}}}", depth=1)
        else:
            page.line(f"{part}:", depth=1)
            page.line(
                f"architecture: {architecture}", "with random weights, of a size that so much data can fill", depth=2
            )
            page.line("config:", depth=2)
            page.values(config, depth=3)
    page.line(f"projection_dim: {128 if missing else 512}", "width of the shared space", depth=1)
    page.line("text_pooling: attention", "learnt: which tokens speak for the caption", depth=1)
    if "image" in asked.weights and asked.weights["image"].model_type == "resnet":
        page.line("batch_norm: frozen", "its running statistics are better than those of small batches", depth=1)
    _pair_data(page, asked, planned, asked.weights.get("image"), is_own=bool(missing))
    _dual_towers(page, asked)
    _ending(page, asked, planned, is_own=bool(missing))
    return page


def _dual_towers(page: Page, asked: Asked) -> None:
    optimizer(page, weight_decay=0.05)
    for part, architecture, lr in (("image", "convnext", 2e-3), ("text", "bert", 1e-3)):
        found = asked.weights.get(part)
        if found is None:
            Freezing("random weights bear a high rate", lr, 1, None).tower(page, part, architecture)
            continue
        everything = r"['^vision_model\.']" if part == "image" else r"['^text_model\.']"
        layers = str(found.model_type) if found.model_type in LAYER_LISTS else everything
        _backbone_freezing(part, found, asked.seen.num_train, known=layers != everything).tower(page, part, layers)
    page.line(
        f"- {{name: heads, lr: 1.0e-3, max_grad_norm: 1.0, layers: {DUAL_HEADS}}}", "new, so they learn fast", depth=2
    )
    page.line("- {name: temperature, lr: 1.0e-3, layers: ['^logit_scale$']}", depth=2)


def _backbone_freezing(part: str, found: Weights, num_samples: int, *, known: bool) -> Freezing:
    """A backbone is tied to no partner yet, so its upper layers always learn; how many, by the size of the data."""
    depths = found.architecture.get("depths")
    depth = sum(depths) + 1 if isinstance(depths, list) and depths else found.depth() or USUAL_DEPTH
    last = depths[-1] + 1 if isinstance(depths, list) and depths else 4 if num_samples < SOME else 8
    lr, decay = (1e-4, 0.9) if part == "image" else (5e-5, 0.9)
    if not known:
        return Freezing("all of it: its layers have no list of their own here", 1e-5, 1, None)
    if num_samples >= MANY or last >= depth:
        return Freezing("all layers, the lower ones more slowly", 3e-5, decay, None)
    return Freezing(f"its last {last} of {depth} layers; how many and their decay belong together", lr, decay, last)


def _length(asked: Asked, *, few: int, usual: int) -> Length:
    num = asked.seen.num_train
    return length(num, contrastive_batch(num), epochs(num, few=few, usual=usual))


def _pair_data(page: Page, asked: Asked, planned: Length, image: Weights | None, *, is_own: bool) -> None:
    seen = asked.seen
    data_begins(page, asked)
    text_input(page, asked)
    image_lines(page, asked, image, is_own=is_own)
    at_once = SCRATCH_AT_ONCE if is_own else PRETRAINED_AT_ONCE
    batches(page, planned, at_once, "each pair is compared with all others of the batch")
    if seen.num_train >= FEW:
        page.line("augmentation:", depth=1)
        page.line("crop_scale: [0.9, 1.0]", "a little, so that the caption still fits", depth=2)
    if seen.captions_per_image is not None and seen.captions_per_image > 1:
        page.section("loss")
        page.line("positives: shared", "two captions of one image in a batch are both right", depth=1)


def image_lines(page: Page, asked: Asked, image: Weights | None, *, is_own: bool, most: int | None = None) -> None:
    """Size and normalisation: what the weights were trained with, else by the images."""
    side = asked.seen.image_side or IMAGE_SIZE
    if image is not None and image.run is not None:
        size, why = image.run.data.model_dump()["image_size"], "what the weights were trained with"
    elif image is not None:
        size, why = _size_of(image), "what the weights were trained with"
    else:
        size, why = (
            image_size(side, most or (64 if is_own else IMAGE_SIZE)),
            f"half of the images have {side} pixels or more",
        )
    page.line(f"image_size: {size}", why, depth=1)
    found = {} if image is None or image.run is not None else image.preprocessing()
    for key in ("image_mean", "image_std"):
        values = found.get(key)
        if isinstance(values, list) and len(values) == 3 and all(isinstance(value, float) for value in values):
            page.line(f"{key}: {values}", "what the weights were trained with", depth=1)


def _size_of(weights: Weights) -> int:
    architecture = weights.architecture
    nested = architecture.get("vision_config")
    for settings in (nested if isinstance(nested, dict) else {}, architecture):
        if isinstance(settings.get("image_size"), int):
            return int(settings["image_size"])
    return IMAGE_SIZE


def optimizer(page: Page, *, weight_decay: float, max_grad_norm: float | None = None) -> None:
    page.section("optimizer")
    page.line("name: adamw", depth=1)
    page.line(f"weight_decay: {number(weight_decay)}", "vectors (biases, norms, temperature) get none", depth=1)
    if max_grad_norm is not None:
        page.line(f"max_grad_norm: {number(max_grad_norm)}", "a single odd batch moves nothing far", depth=1)
    page.line("towers:", "the first one that matches a parameter owns it; `plan` shows every group", depth=1)
    page.group()


def _ending(page: Page, asked: Asked, planned: Length, *, is_own: bool) -> None:
    why = "random weights need a slow start" if is_own else "Adam's estimates settle before the rate is full"
    schedule(page, 0.1 if is_own else 0.05, why)
    evaluation(page, asked, planned, "mean_recall", "text to image and image to text count alike", patience=None)
