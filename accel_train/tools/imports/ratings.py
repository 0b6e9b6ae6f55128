"""`accel-train import --task scorer`: tables of rated images to one dataset folder, with every record checked."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accel_train.data.arrow_split import FORMAT_VERSION
from accel_train.data.rated_images import RATINGS, TASK
from accel_train.data.readers.ratings import RatingColumns, find_tables, read
from accel_train.data.split_import import VALID_SPLIT, BadRecords
from accel_train.data.text import caption_vocabulary, save_tokenizer
from accel_train.errors import UserError
from accel_train.tools.imports.pairs import check_options
from accel_train.tools.imports.rated_split import Range, RatedImport
from accel_train.tools.row_progress import counted
from accel_train.tools.written_aside import written_aside


@dataclass
class RatingsSummary:
    """What an import wrote and what it left out."""

    output: str
    splits: dict[str, dict[str, Any]]
    """Counts, mean ratings (0 to 1) and fingerprint of each split."""
    rating_ranges: dict[str, Range]
    """What 0 and 1 were on the scale of the source."""
    num_shared_images: int
    """Images that stand in more than one split, by content."""
    num_bad: int
    bad_records: list[str]
    """The first of them: place and reason."""
    vocab_size: int | None
    """Size of the tokenizer that was built."""


def import_ratings(
    source: str,
    output: str,
    *,
    columns: RatingColumns,
    format: str | None = None,
    splits: list[str] | None = None,
    valid_share: float | None = None,
    rating_range: Range | None = None,
    build_tokenizer: int | None = None,
    max_bad_records: int = 0,
    show_progress: bool = True,
) -> RatingsSummary:
    """Writes the dataset folder `output` from tables of rated images.

    `valid_share` (0 to 1) takes about that share of the groups of a source with one split for a second split, `valid`.
    A group is the value of its column, or without one the image's content: no image stands on both sides, and the order
    of rows does not matter. `rating_range` is what both ratings may be in the source; left out, each runs from its
    smallest to its largest value. `build_tokenizer` makes a tokenizer of at most so many tokens from the prompts and
    explanations of train.
    """
    target = Path(output)
    if target.exists():
        raise UserError(f"{output} already exists. Import into a new folder, or remove this one first.")
    if not Path(source).exists():
        raise UserError(f"{source} does not exist.")
    check_options(valid_share, build_tokenizer, max_bad_records)
    files = _chosen_splits(find_tables(Path(source), format), source, splits, valid_share)
    if columns.group is not None and valid_share is None:
        raise UserError(
            "--group-column says what --valid-share keeps together, and that is not given. Give both or neither."
        )
    if rating_range is not None and not rating_range[0] < rating_range[1]:
        raise UserError(f"--rating-range is {rating_range[0]:g} {rating_range[1]:g}; the smallest rating comes first.")
    bad = BadRecords()
    with written_aside(target) as folder:
        rated = RatedImport(folder, valid_share, bad)
        for split, paths in files.items():
            for record in counted(read(paths, columns), split, shown=show_progress):
                rated.add(split, record)
        ranges = rated.ranges(rating_range, source)
        bad.refuse_beyond(max_bad_records, source)
        for split in [*files, *([VALID_SPLIT] if valid_share is not None else [])]:
            if not any(sample[0] == split for sample in rated.samples):
                raise UserError(
                    f"{source}: the split {split} has no rated image. Use another share, or repair the source."
                )
        described = rated.finish(ranges)
        vocabulary = _vocabulary(rated, build_tokenizer)
        if vocabulary is not None:
            save_tokenizer(vocabulary, folder / "tokenizer")
        _write_description(folder, source, ranges, described, bad)
    vocab_size = None if vocabulary is None else len(vocabulary)
    return RatingsSummary(output, described, ranges, rated.num_shared_images(), bad.count, bad.listed, vocab_size)


def _chosen_splits(
    files: dict[str, list[Path]], source: str, splits: list[str] | None, valid_share: float | None
) -> dict[str, list[Path]]:
    unknown = [split for split in splits or [] if split not in files]
    if unknown:
        raise UserError(f"{source}: no split {unknown[0]!r}; it has {', '.join(files)}.")
    files = {split: paths for split, paths in files.items() if splits is None or split in splits}
    if valid_share is not None and (len(files) != 1 or VALID_SPLIT in files):
        raise UserError(
            f"--valid-share makes the split 'valid' from a source with one other split; {source} has {', '.join(files)}. "
            "Leave it out."
        )
    return files


def _vocabulary(rated: RatedImport, size: int | None) -> list[str] | None:
    if size is None:
        return None
    train = [record for split, _, record in rated.samples if split != VALID_SPLIT]
    texts = [text for record in train for text in (record.prompt, record.explanation) if text is not None]
    return caption_vocabulary(texts, size)


def _write_description(
    folder: Path, source: str, ranges: dict[str, Range], described: dict[str, dict[str, Any]], bad: BadRecords
) -> None:
    description = {
        "format_version": FORMAT_VERSION,
        "task": TASK,
        "source": Path(source).name,
        "num_bad_records_left_out": bad.count,
        "rating_ranges": ranges,
        "splits": described,
    }
    text = json.dumps(description, indent=2, ensure_ascii=False) + "\n"
    (folder / "dataset.json").write_text(text, encoding="utf-8")


def print_import(summary: RatingsSummary, *, as_json: bool) -> None:
    """One line for each split, the ranges, then what was left out and why. With `as_json`, one object."""
    if as_json:
        print(json.dumps(asdict(summary), indent=1, ensure_ascii=False))
        return
    print(f"{summary.output}: written for the task {TASK}")
    for split, counts in summary.splits.items():
        means = ", ".join(f"mean {name} {counts[f'mean_{name}']:.3f}" for name in RATINGS)
        print(f"  {split}: {counts['num_images']:,} images, {counts['num_samples']:,} samples, {means}")
    for name, (lowest, highest) in summary.rating_ranges.items():
        print(f"  {name}: {lowest:g} to {highest:g} became 0 to 1")
    if summary.num_shared_images:
        print(f"  warning: {summary.num_shared_images:,} images stand in more than one split")
    if summary.vocab_size is not None:
        print(f"  tokenizer: {summary.vocab_size:,} tokens; use it with data.tokenizer: dataset:tokenizer")
    if summary.num_bad:
        print(f"  left out: {summary.num_bad:,} bad records")
        for record in summary.bad_records:
            print(f"    {record}")
