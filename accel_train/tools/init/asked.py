"""What a page is written from: the command line, the dataset as seen, the weights, and the sections all pages share."""

from dataclasses import dataclass

from accel_train.tools.init.choices import Length, micro_batch
from accel_train.tools.init.look import Seen
from accel_train.tools.init.page import Page, scalar
from accel_train.tools.init.weights import Weights

WHY_EPOCHS = "few samples are seen often, many seldom"


@dataclass(frozen=True)
class Asked:
    workload: str
    task: str
    config: str
    """Path of the file to write."""
    run_dir: str
    seen: Seen
    weights: dict[str, Weights]
    tokenizer: str
    """Value of data.tokenizer."""
    vocab_size: int
    max_text_length: int
    share_cut: float
    """Of the texts, those that are longer."""


def head(page: Page, asked: Asked, title: str, remarks: list[str]) -> None:
    """The comment that opens a file: what it is for, what was seen, what to do next."""
    for text in (
        f"{title}, on {asked.seen.num_train:,} samples of {asked.seen.path}.",
        "`accel-train init` wrote it after looking at the data. Its values are a beginning; change any of them.",
        "",
        *(f"  {line}" for line in asked.seen.lines),
        *(["", *remarks] if remarks else []),
        "",
        f"  accel-train plan {asked.config}",
        f"  accel-train train {asked.config}",
    ):
        page.line(f"# {text}".rstrip())


def top(page: Page, asked: Asked, length: Length, why_epochs: str, *, precision: bool) -> None:
    page.line("")
    if asked.task != "contrastive":
        page.line(f"task: {asked.task}")
    page.line(f"run_dir: {scalar(asked.run_dir)}", "checkpoints, metrics and logs; the same command goes on from there")
    page.line("seed: 0", "another seed, another draw: compare several before you believe a small gain")
    page.line(f"num_epochs: {length.num_epochs}", f"{length.total_steps:,} steps; {why_epochs}")
    if precision:
        page.line("precision: bf16", "of GPUs since 2020; fp16 on older ones, fp32 where speed does not matter")


def data_begins(page: Page, asked: Asked) -> None:
    seen = asked.seen
    page.section("data")
    page.line(f"path: {scalar(seen.path)}", depth=1)
    if seen.train_split != "train":
        page.line(f"train_split: {scalar(seen.train_split)}", depth=1)
    if seen.valid_split is None:
        why = "this dataset has none: import it with --valid-share 0.1 to see scores while it trains"
        page.line("valid_split: null", why, depth=1)
    elif seen.valid_split != "valid":
        page.line(f"valid_split: {scalar(seen.valid_split)}", depth=1)


def text_input(page: Page, asked: Asked) -> None:
    whose = (
        "the one that import built"
        if asked.tokenizer == "dataset:tokenizer"
        else "the one the weights were trained with"
    )
    page.line(f"tokenizer: {scalar(asked.tokenizer)}", whose, depth=1)
    cut = f"{asked.share_cut:.1%} of the texts are longer and are cut" if asked.share_cut else "no text is longer"
    page.line(f"max_text_length: {asked.max_text_length}", f"tokens, special ones included; {cut}", depth=1)


def batches(page: Page, length: Length, most_at_once: int, why: str) -> None:
    micro = micro_batch(length.global_batch_size, most_at_once)
    page.line(
        f"global_batch_size: {length.global_batch_size}", f"{why}; {length.steps_per_epoch:,} steps an epoch", depth=1
    )
    page.line(f"micro_batch_size: {micro}", "what fits into memory on one rank; it changes speed, not results", depth=1)


def schedule(page: Page, warmup_ratio: float, why: str) -> None:
    page.section("schedule")
    page.line("name: cosine", "falls to nothing by the last step", depth=1)
    page.line(f"warmup_ratio: {warmup_ratio:g}", why, depth=1)


def evaluation(page: Page, asked: Asked, length: Length, best_score: str, why: str, *, patience: int | None) -> None:
    """And checkpoints and the log, which go by the same clock."""
    every = length.evaluate_every()
    if asked.seen.valid_split is not None:
        page.section("evaluation")
        page.line(f"evaluate_every: {every}", "about ten times in the run", depth=1)
        page.line(f"best_score: {best_score}", why, depth=1)
        if patience is not None:
            page.line(
                f"early_stopping: {{patience: {patience}}}", "ends when so many evaluations were no better", depth=1
            )
    page.section("checkpoint")
    page.line(f"save_every: {every}", "what a kill may cost; the best one and the last two are kept", depth=1)
    page.section("log")
    page.line(f"log_every: {length.log_every()}", "some lines in each epoch", depth=1)
