"""`accel-train embed`: features of a trained model for a split, a folder of images or a file of texts, in one file."""

import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from accel_train.config.contrastive import ContrastiveConfig
from accel_train.config.schema import RunConfig
from accel_train.data.dataset import Dataset
from accel_train.data.feature_file import FeatureFile, check_ending, read_features, write_features
from accel_train.data.loader import Reply, Request, read_requests
from accel_train.data.loose_files import ImageFiles, TextLines, find_images, read_lines
from accel_train.data.pairs import ImageDataset, TextDataset, caption_tokenizer, tokenizer_path
from accel_train.data.splits import open_split
from accel_train.engine.build import build_engine
from accel_train.engine.engine import Engine
from accel_train.errors import UserError
from accel_train.models.weights_digest import digest_of_weights
from accel_train.preflight import preflight
from accel_train.run_lock import RunLock
from accel_train.tasks.clip_parts import reads_padding
from accel_train.tools.feature_blocks import Block, Part, Parts, about_work, cut_into_blocks, identity_of, remove
from accel_train.tools.row_progress import RowProgress
from accel_train.tools.trained import Trained, open_config, open_trained
from accel_train.writable import check_writable

LOCK = "lock"
MAX_NAMED = 20
"""Unreadable images that an error names; the others are counted."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What to embed. Exactly one of `split`, `images` and `texts`."""

    data_path: str | None
    """Dataset of the split. None: the one that the configuration names."""
    split: str | None
    images: str | None
    texts: str | None
    max_unreadable: int = 0
    """Images of a folder that may be left out."""


@dataclass(slots=True)
class Inputs:
    """One dataset for each kind, image or text, and what its rows are called."""

    datasets: dict[str, Dataset]
    ids: dict[str, list[str]]
    fingerprint: str | None
    name: str


def embed(
    source: str, output: str, asked: Asked, *, overrides: list[str], checkpoint: str | None, as_json: bool
) -> dict[str, Any]:
    """Embeds over all ranks and writes `output`. Returns the summary that it prints.

    Work lies in OUTPUT.parts until it is whole, so the same command goes on after a kill. Raises UserError.
    """
    target = Path(output)
    parts = Parts(target.with_name(f"{target.name}.parts"))
    _check(target, parts, asked)
    config = open_config(source, overrides)
    if not isinstance(config, ContrastiveConfig):
        raise UserError(f"{source}: the task {config.task} has no features of images and texts to embed.")
    engine = build_engine(config, for_evaluation=True)
    lock: RunLock | None = None
    try:
        preflight(engine, config, None)
        trained = engine.together(lambda: open_trained(source, config, checkpoint=checkpoint))
        assert isinstance(trained.task.config, ContrastiveConfig)
        config = trained.task.config
        inputs = engine.together(lambda: open_inputs(config, asked))
        batch_size = config.evaluation.batch_size or config.data.micro_batch_size
        blocks = {kind: cut_into_blocks(kind, len(rows), batch_size) for kind, rows in inputs.datasets.items()}
        lock = engine.together(lambda: _locked(target, parts) if engine.is_main else None)
        identity = engine.together(lambda: _claim(engine, target, parts, trained, config, inputs, batch_size))
        if not engine.gather_objects(target.exists())[0]:
            engine.hold(trained.model, precision=config.precision)
            compute(engine, config, inputs, blocks, parts, asked.max_unreadable)
            engine.together(lambda: _finish(engine, target, parts, blocks, trained, inputs, identity))
        summary = engine.together(lambda: _summary(target, trained, inputs) if engine.is_main else {})
        if engine.is_main:
            remove(parts.folder)
            print(json.dumps(summary, indent=1, ensure_ascii=False) if as_json else _in_words(summary))
    finally:
        if lock is not None:
            lock.release()
            with suppress(OSError):  # it holds finished blocks
                parts.folder.rmdir()
        engine.close()
    return summary


def open_inputs(config: ContrastiveConfig, asked: Asked) -> Inputs:
    """The datasets that were asked for, read as the model was trained. Raises UserError."""
    if asked.images is not None:
        names = find_images(asked.images)
        dataset = ImageFiles(asked.images, names, config.data)
        return Inputs({"image": dataset}, {"image": names}, None, f"images of {asked.images}")
    if asked.texts is not None:
        texts = read_lines(asked.texts)
        lines = TextLines(texts, caption_tokenizer(config.data))
        return Inputs({"text": lines}, {"text": texts}, None, f"texts of {asked.texts}")
    assert asked.split is not None
    path = asked.data_path or config.data.path
    # Another dataset may have a tokenizer of its own: the model knows the one it was trained with.
    data = config.data.model_copy(update={"path": path, "tokenizer": tokenizer_path(config.data)})
    opened = open_split(path, asked.split)
    texts_of_split = TextDataset(data, asked.split, whole_length=reads_padding(config))
    datasets: dict[str, Dataset] = {"image": ImageDataset(data, asked.split), "text": texts_of_split}
    ids = {"image": opened.images.column("image_id").tolist(), "text": opened.texts.column("text_id").tolist()}
    return Inputs(datasets, ids, opened.fingerprint, f"{path}, split {asked.split}")


@torch.no_grad()
def compute(
    engine: Engine,
    config: RunConfig,
    inputs: Inputs,
    blocks: dict[str, list[Block]],
    parts: Parts,
    max_unreadable: int,
) -> None:
    """Writes the blocks that are missing, each by one rank; in a round every rank does one. Raises UserError."""
    engine.bare_model().eval()
    every = [block for listed in blocks.values() for block in listed]
    # Rank 0 looks: on a shared disk others might not see the newest files yet, and all must count the same rounds.
    unreadable = engine.gather_objects(parts.unreadable(every) if engine.is_main else [])[0]
    for kind, dataset in inputs.datasets.items():
        missing = engine.gather_objects(parts.missing(blocks[kind]) if engine.is_main else [])[0]
        mine = missing[engine.rank :: engine.world_size]
        requests = [Request(tuple(batch), None) for block in mine for batch in block.batches()]
        replies = replies_for(dataset, requests, config)
        done = len(dataset) - sum(block.stop - block.start for block in missing)
        with RowProgress(f"{kind}s", len(dataset), done=done, shown=engine.is_main) as progress:
            for place in range(-(-len(missing) // engine.world_size)):
                block = mine[place] if place < len(mine) else None
                new = engine.together(partial(_compute, engine, block, replies, parts))
                for rows, names in engine.gather_objects(new):
                    progress.advance(rows)
                    unreadable += names
                if len(unreadable) > max_unreadable:
                    raise UserError(_too_many(unreadable, max_unreadable, from_split=inputs.fingerprint is not None))


def _compute(engine: Engine, block: Block | None, replies: Iterator[Reply], parts: Parts) -> tuple[int, list[str]]:
    """One block on this rank. Returns how many rows it covers, and which of them can't be read."""
    if block is None:
        return 0, []
    rows, features, unreadable = [], [], []
    for _ in block.batches():
        reply = next(replies)
        unreadable += reply.unreadable
        if reply.columns:
            rows.append(reply.columns["sample_id"])
            features.append(features_of(engine, block.kind, reply.columns, block.batch_size))
    empty = Part(torch.empty(0, dtype=torch.int64), torch.empty(0, 0), unreadable)
    parts.write(block, Part(torch.cat(rows), torch.cat(features), unreadable) if rows else empty)
    return block.stop - block.start, unreadable


@torch.no_grad()
def features_of(engine: Engine, kind: str, columns: dict[str, Tensor], batch_size: int) -> Tensor:
    """Features (n, D) in fp32 on the CPU, of n <= batch_size rows.

    Always a full batch: matrix kernels for very few rows may round by where in memory the rows lie.
    """
    num_rows = len(next(iter(columns.values())))
    fill = torch.arange(batch_size) % num_rows
    outputs = engine.model(engine.to_device({name: column[fill] for name, column in columns.items()}))
    return outputs[f"{kind}_features"][:num_rows].float().cpu()


def replies_for(dataset: Dataset, requests: list[Request], config: RunConfig) -> Iterator[Reply]:
    """What loader processes read, in the order of the requests."""
    return read_requests(
        dataset,
        requests,
        num_workers=min(config.data.num_workers, len(requests)),
        start_method=config.data.worker_start_method,
        prefetch_batches=config.data.prefetch_batches,
        seed=0,
        pin_memory=False,
    )


def _check(target: Path, parts: Parts, asked: Asked) -> None:
    check_ending(target)
    if not target.parent.is_dir():
        raise UserError(f"{target}: there is no folder {target.parent}. Make it first.")
    check_writable(target, "OUTPUT")
    if target.exists() and not parts.folder.exists():
        raise UserError(f"{target} exists already, and nothing is overwritten. Choose another name.")
    if asked.data_path is not None and asked.split is None:
        raise UserError("--data names the dataset of --split; without --split it would be ignored.")
    if asked.max_unreadable and asked.images is None:
        raise UserError(
            "--max-unreadable is for --images: rows of a split must match its dataset, and texts can always be read."
        )


def _locked(target: Path, parts: Parts) -> RunLock:
    """Keeps a second command with the same output away. Raises UserError."""
    parts.folder.mkdir(exist_ok=True)
    return RunLock(
        parts.folder / LOCK, what=f"{target}: another command is writing it", say=partial(print, file=sys.stderr)
    )


def _claim(
    engine: Engine,
    target: Path,
    parts: Parts,
    trained: Trained,
    config: ContrastiveConfig,
    inputs: Inputs,
    batch_size: int,
) -> str:
    """Rank 0: makes the parts this command's own. Returns the identity of the features, "" on other ranks."""
    if not engine.is_main:
        return ""
    fingerprints = {kind: dataset.fingerprint for kind, dataset in inputs.datasets.items()}
    about = about_work(config, trained.model, fingerprints, batch_size)
    identity = identity_of(about)
    parts.claim(about)
    # A kill between the last two acts, renaming the file and removing the parts, leaves both.
    if target.exists() and read_features(target).identity != identity:
        raise UserError(f"{target} exists already, and nothing is overwritten. Choose another name.")
    return identity


def _finish(
    engine: Engine,
    target: Path,
    parts: Parts,
    blocks: dict[str, list[Block]],
    trained: Trained,
    inputs: Inputs,
    identity: str,
) -> None:
    """Rank 0: joins the parts and gives the file its name."""
    if not engine.is_main:
        return
    content = FeatureFile(None, None, inputs.fingerprint, trained.source, dataset=inputs.name, identity=identity)
    content.weights = digest_of_weights(trained.model)
    content.logit_scale = float(trained.model.state_dict()["logit_scale"].exp())
    for kind, listed in blocks.items():
        rows, features = parts.join(listed)
        ids = [inputs.ids[kind][row] for row in rows.tolist()]
        if kind == "image":
            content.image_features, content.image_ids = features, ids
        else:
            content.text_features, content.text_ids = features, ids
    aside = parts.folder / f"whole{target.suffix}"
    write_features(aside, content)
    aside.replace(target)


def _too_many(unreadable: list[str], max_unreadable: int, *, from_split: bool) -> str:
    named = "".join(f"\n  {name}" for name in unreadable[:MAX_NAMED])
    more = f"\n  ... and {len(unreadable) - MAX_NAMED} more" if len(unreadable) > MAX_NAMED else ""
    count = "1 image" if len(unreadable) == 1 else f"{len(unreadable)} images"
    if from_split:
        return f"{count} of the split can't be read. Import it again without them.{named}{more}"
    return (
        f"{count} can't be read so far, and --max-unreadable is {max_unreadable}. Remove them, or allow that many to be "
        f"left out; what is done is kept.{named}{more}"
    )


def _summary(target: Path, trained: Trained, inputs: Inputs) -> dict[str, Any]:
    content = read_features(target)
    summary: dict[str, Any] = {"output": str(target), "source": content.source, "input": content.dataset}
    for kind, dataset in inputs.datasets.items():
        features = content.features(kind)
        assert features is not None
        kept = set(content.ids(kind))
        summary |= {f"num_{kind}s": len(features), "num_dimensions": features.shape[1]}
        if len(features) < len(dataset):
            summary["left_out"] = [name for name in inputs.ids[kind] if name not in kept]
    return summary


def _in_words(summary: dict[str, Any]) -> str:
    counts = [(summary[f"num_{kind}s"], kind) for kind in ("image", "text") if f"num_{kind}s" in summary]
    listed = " and ".join(f"{count} {kind}{'' if count == 1 else 's'}" for count, kind in counts)
    lines = [summary["source"], f"{summary['input']}: {listed}, features of length {summary['num_dimensions']}"]
    if left_out := summary.get("left_out"):
        lines.append(f"left out, since they can't be read: {', '.join(left_out)}")
    return "\n".join([*lines, f"→ {summary['output']}"])
