"""The page for the task `sequence_classification`."""

from accel_train.optim.layers import LAYER_LISTS
from accel_train.tools.init import scratch
from accel_train.tools.init.asked import Asked, batches, data_begins, evaluation, head, schedule, text_input, top
from accel_train.tools.init.choices import SOME, epochs, length
from accel_train.tools.init.contrastive import Freezing, optimizer
from accel_train.tools.init.page import Page, scalar
from accel_train.tools.init.weights import WHOLE

LLAMA_LIKE = ("llama", "mistral", "qwen2", "qwen3")
"""Decoders whose parameters have the same names."""
MAJORITY = 0.5
"""Share of one class from which on accuracy flatters a classifier that knows nothing else."""
BATCH = 80


def classification_page(asked: Asked) -> Page:
    page, seen = Page(), asked.seen
    num = seen.num_train
    source = asked.weights.get(WHOLE)
    planned = length(num, BATCH if num >= 20 * BATCH else 16, epochs(num, few=20, usual=5))
    remarks = (
        []
        if source
        else ["No --weights were given: this trains from random weights. A pretrained model does far better."]
    )
    head(page, asked, f"Sorts texts into {len(seen.class_shares)} classes", remarks)
    top(page, asked, planned, "ended early when it no longer helps", precision=source is not None)
    page.section("model")
    if source is not None:
        page.line(f"pretrained: {scalar(source.source)}", "a head for these classes is drawn if it has none", depth=1)
    else:
        page.line("architecture: llama", "with random weights, of a size that so much data can fill", depth=1)
        page.line("config:", depth=1)
        page.values(scratch.transformer(num) | {"attention_dropout": 0.1}, depth=2)
    data_begins(page, asked)
    text_input(page, asked)
    page.line("length_window: 20", "texts of like length share a batch: less padding", depth=1)
    batches(page, planned, BATCH, "a usual batch for so many texts")
    page.line("num_workers: 0", "texts are read faster than workers start", depth=1)
    optimizer(page, weight_decay=0.01 if source else 0.05, max_grad_norm=1.0)
    _towers(page, asked)
    schedule(page, 0.06 if source else 0.1, "Adam's estimates settle before the rate is full")
    largest = max(seen.class_shares.values())
    if largest > MAJORITY:
        score, why = "macro_f1", f"one class is {largest:.0%} of the texts, so accuracy says little"
    else:
        score, why = "accuracy", f"always the largest class gives {largest:.1%}"
    evaluation(page, asked, planned, score, why, patience=3)
    return page


def _towers(page: Page, asked: Asked) -> None:
    source = asked.weights.get(WHOLE)
    if source is None:
        Freezing("random weights bear a high rate", 2e-3, 1, None).tower(page, "decoder", "llama")
        return
    kind = str(source.model_type)
    layers = "llama" if kind in LLAMA_LIKE else kind if kind in LAYER_LISTS else "['.*']"
    few = asked.seen.num_train < SOME and layers != "['.*']"
    why = "few texts: low layers keep what they know" if few else "1e-5 to 2e-5 for pretrained models"
    Freezing(why, 1e-5 if layers == "llama" else 2e-5, 0.9 if few else 1, None).tower(page, "model", layers)
