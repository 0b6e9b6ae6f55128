"""The page for the task `scorer`. Freezing, rates and residual scales go by the number of ratings."""

from typing import Any

from accel_train.advice import RESIDUAL_SCALES
from accel_train.config.schema import RunConfig
from accel_train.tools.init import scratch
from accel_train.tools.init.asked import Asked, batches, data_begins, evaluation, head, schedule, text_input, top
from accel_train.tools.init.choices import SOME, length
from accel_train.tools.init.contrastive import USUAL_DEPTH, Freezing, image_lines, model_type, optimizer
from accel_train.tools.init.page import Page, number, scalar
from accel_train.tools.init.weights import WHOLE, Weights

FEW_RATINGS = RESIDUAL_SCALES[0][0]
HEADS_FROZEN, HEADS_PARTLY, HEADS_WHOLE = 2e-3, 1e-3, 5e-4


def scorer_page(asked: Asked) -> Page:
    page, seen = Page(), asked.seen
    num = seen.num_train
    source = asked.weights.get(WHOLE)
    clip = _own_clip(source)
    kind = "dual_encoder" if source is None else model_type(source)
    epochs = 30 if num < FEW_RATINGS else 20 if num < SOME else 10
    planned = length(num, 32 if num < SOME else 64, epochs)
    remarks = []
    if source is None:
        remarks = [
            "No --weights were given: its CLIP has random weights, and scores learn little. Train a CLIP first, for example",
            "by `accel-train init dual_encoder`, and give its run as --weights, or a folder with pretrained weights.",
        ]
    head(page, asked, "Quality and consistency of images, on top of a CLIP-like model", remarks)
    top(page, asked, planned, "ended early when it no longer helps", precision=source is not None and clip is None)
    if source is not None and source.run is not None:
        page.line(f"initialize_from: {scalar(source.source)}", "its weights become the CLIP")
    _model(page, asked, source, kind, clip)
    data_begins(page, asked)
    text_input(page, asked)
    image_lines(page, asked, source, is_own=True, most=224)
    batches(page, planned, 64, "few ratings bear many small steps")
    page.line("augmentation: {horizontal_flip: 0.5}", "no crop: scaling blurs, and sharpness is rated", depth=1)
    _loss(page, asked)
    optimizer(page, weight_decay=1e-4, max_grad_norm=1.0)
    _towers(page, asked, source, kind, clip)
    schedule(page, 0.05, "the heads begin as nothing and need a moment")
    patience = None if seen.valid_split is None else 5
    evaluation(page, asked, planned, "srocc", "rank correlation, the mean of both scores", patience=patience)
    return page


def _own_clip(source: Weights | None) -> dict[str, Any] | None:
    """The CLIP's section of a run."""
    if source is None or source.run is None:
        return None
    model: dict[str, Any] = source.run.model_dump(exclude_defaults=True)["model"]
    return model.get("clip", model)


def _model(page: Page, asked: Asked, source: Weights | None, kind: str, clip: dict[str, Any] | None) -> None:
    num = asked.seen.num_train
    page.section("model")
    page.line("clip:", depth=1)
    if clip is not None:
        page.values(clip, depth=2)
    elif source is None:
        towers = {
            "type": "dual_encoder",
            "image": {"architecture": "convnext", "config": scratch.convnext(num)},
            "text": {"architecture": "bert", "config": scratch.bert(num, asked.vocab_size)},
            "projection_dim": 128,
        }
        page.values(towers, depth=2)
    else:
        page.line(f"type: {kind}", depth=2)
        page.line(f"pretrained: {scalar(source.source)}", depth=2)
        if source.model_type == "chinese_clip_resnet":
            page.line("batch_norm: frozen", "its running statistics are better than those of small batches", depth=2)
    low = next(low for below, low, _ in RESIDUAL_SCALES if num < below)
    why = f"how far scores may leave CLIP's similarity: {low:g} suits {num:,} ratings"
    page.line(f"residual: {{scale_quality: {low:g}, scale_consistency: {low:g}}}", why, depth=1)
    if kind == "dual_encoder":
        page.line("quality_layers: 2", "sharpness and noise show in low layers", depth=1)
    page.line("dropout: 0.1", "in the heads", depth=1)


def _loss(page: Page, asked: Asked) -> None:
    seen = asked.seen
    page.section("loss")
    page.line("quality_weight: 0.5", depth=1)
    page.line("consistency_weight: 0.5", depth=1)
    if seen.num_explained:
        page.line("explanation_weight: 0.1", f"{seen.num_explained:,} ratings say why", depth=1)
    else:
        page.line("explanation_weight: 0.0", "this dataset has no explanations", depth=1)


def _towers(page: Page, asked: Asked, source: Weights | None, kind: str, clip: dict[str, Any] | None) -> None:
    explained = asked.seen.num_explained > 0
    image, text, heads = _freezing(asked.seen.num_train, source, clip)
    if kind == "dual_encoder":
        image_layers, text_layers = "convnext", "bert"
        if source is not None and source.run is not None:
            image_layers, text_layers = (layers_of(source.run, part) for part in ("image", "text"))
        projections = [r"'^clip\.text_pooling\.'", r"'^clip\.(?:visual|text)_projection\.'"]
    else:
        is_resnet = source is not None and source.model_type == "chinese_clip_resnet"
        image_layers, text_layers = "cn_clip_resnet" if is_resnet else f"{kind}_image", f"{kind}_text"
        projections = [] if kind == "siglip" else [r"'^clip\.(?:visual|text)_projection\.'"]
    image.tower(page, "image", image_layers)
    text.tower(page, "text", text_layers)
    scale = [r"'^clip\.logit_scale$'", *([r"'^clip\.logit_bias$'"] if kind == "siglip" else [])]
    patterns = ", ".join([*projections, *(scale if explained else [])])
    if patterns:
        page.line(
            f"- {{name: clip_heads, lr: {number(image.lr)}, layers: [{patterns}]}}", "as fast as the towers", depth=2
        )
    own = [r"'^similarity_map\.'", r"'_head\.'", *([r"'^pair_projection\.'"] if explained else [])]
    page.line(f"- {{name: heads, lr: {number(heads)}, layers: [{', '.join(own)}]}}", "new, so they learn fast", depth=2)


def _freezing(num: int, source: Weights | None, clip: dict[str, Any] | None) -> tuple[Freezing, Freezing, float]:
    """Of the image tower and the text tower, and the rate of the heads."""
    if source is None or (clip is not None and not _names_weights(clip)):
        why = "small and from random weights, it bears a high rate"
        return Freezing(why, 1e-3, 1, None), Freezing(why, 3e-4, 1, None), 2e-3
    if num < FEW_RATINGS:
        frozen = Freezing(f"fewer than {FEW_RATINGS} ratings would spoil it: frozen", 0, 1, None)
        return frozen, frozen, HEADS_FROZEN
    if num >= SOME:
        whole = Freezing("all layers, the lower ones more slowly; 1e-5 to 3e-5", 2e-5, 0.85, None)
        return whole, whole, HEADS_WHOLE
    depths = [source.depth(part) or USUAL_DEPTH for part in ("vision_config", "text_config")]
    image, text = (
        Freezing(f"its last {max(1, depth // 4)} of {depth} layers; 3e-5 to 1e-4", 5e-5, 1, max(1, depth // 4))
        for depth in depths
    )
    return image, text, HEADS_PARTLY


def layers_of(run: RunConfig, part: str) -> str:
    """The named list by which a run found the layers of a tower, else a pattern for all of it."""
    for tower in run.optimizer.towers:
        if tower.name == part and isinstance(tower.layers, str):
            return tower.layers
    return r"['\.vision_model\.']" if part == "image" else r"['\.text_model\.']"


def _names_weights(clip: dict[str, Any]) -> bool:
    """Whether something in a CLIP's section is pretrained."""
    parts = [clip, *(clip[part] for part in ("image", "text") if isinstance(clip.get(part), dict))]
    return any(key.endswith("pretrained") for part in parts for key in part)
