"""`accel-train import`: any supported source to one dataset folder, with every record checked.

Nothing is left behind by an import that fails: the folder is written under another name and renamed at the end.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from accel_train.data.arrow_split import FORMAT_VERSION
from accel_train.data.readers import (
    chinese_clip_lmdb,
    chinese_clip_tsv,
    csv_table,
    hf_datasets,
    image_folder,
    jsonl,
    parquet,
    webdataset,
)
from accel_train.data.readers.records import SPLIT_NAME, Columns, Record
from accel_train.data.split_import import BadRecords, SplitImport
from accel_train.data.text import SPECIAL_TOKENS, caption_vocabulary, save_tokenizer
from accel_train.errors import UserError
from accel_train.tools.row_progress import counted
from accel_train.tools.written_aside import written_aside

FindSplits = Callable[[Path], dict[str, list[Path]]]


class Format(NamedTuple):
    """A kind of source: how its splits are found (none: it is not of this kind) and read."""

    find_splits: FindSplits
    read: Callable[[list[Path], Columns], Iterator[Record]]


FORMATS = {
    "chinese_clip_tsv": Format(chinese_clip_tsv.find_splits, chinese_clip_tsv.read),
    "chinese_clip_lmdb": Format(chinese_clip_lmdb.find_splits, chinese_clip_lmdb.read),
    "hf_datasets": Format(hf_datasets.find_splits, hf_datasets.read),
    "webdataset": Format(webdataset.find_splits, webdataset.read),
    "parquet": Format(parquet.find_splits, parquet.read),
    "jsonl": Format(jsonl.find_splits, jsonl.read),
    "csv": Format(csv_table.find_splits, csv_table.read),
    "image_folder": Format(image_folder.find_splits, image_folder.read),
}
"""In the order in which a source is tried when no format is given: the most telling first."""
FINDERS: dict[str, FindSplits] = {name: kind.find_splits for name, kind in FORMATS.items()}


@dataclass
class ImportSummary:
    """What an import wrote and what it left out."""

    output: str
    format: str
    splits: dict[str, dict[str, Any]]
    """num_images, num_texts, num_pairs and fingerprint of each split."""
    num_bad: int
    bad_records: list[str]
    """The first of them: place and reason."""
    num_captions_dropped: int
    """Captions left out because all their images were bad."""
    vocab_size: int | None
    """Size of the tokenizer that was built."""


def import_data(
    source: str,
    output: str,
    *,
    format: str | None = None,
    splits: list[str] | None = None,
    image_column: str | None = None,
    text_column: str | None = None,
    image_id_column: str | None = None,
    text_id_column: str | None = None,
    valid_share: float | None = None,
    build_tokenizer: int | None = None,
    max_bad_records: int = 0,
    show_progress: bool = True,
) -> ImportSummary:
    """Writes the dataset folder `output` from `source`, with all its splits or those named in `splits`.

    `format` is one of FORMATS; left out, it is detected. `valid_share` (0 to 1) takes about that share of the images of a
    source with one split for a second split, `valid`; copies of one image stay on one side. `build_tokenizer` makes a
    WordPiece tokenizer of at most so many tokens from the captions of `train`. More than `max_bad_records` bad records
    stop the import, after all of them were found.
    """
    target = Path(output)
    if target.exists():
        raise UserError(f"{output} already exists. Import into a new folder, or remove this one first.")
    check_options(valid_share, build_tokenizer, max_bad_records)
    name, files = find_source(Path(source), format, splits)
    if valid_share is not None and len(files) != 1:
        raise UserError(f"--valid-share is for a source with one split; {source} has {', '.join(files)}. Leave it out.")
    if valid_share is not None and "valid" in files:
        raise UserError(f"--valid-share makes the split 'valid', which is the one that {source} has. Leave it out.")
    columns = Columns(image_column, text_column, image_id_column, text_id_column)
    bad = BadRecords()
    described: dict[str, dict[str, Any]] = {}
    num_dropped = 0
    captions: list[str] = []
    with written_aside(target) as folder:
        for split, paths in files.items():
            importer = SplitImport(folder, split, valid_share, bad)
            for record in counted(FORMATS[name].read(paths, columns), split, shown=show_progress):
                importer.add(record)
            described |= importer.finish()
            num_dropped += importer.num_captions_dropped
            if split == "train" or len(files) == 1:
                captions = importer.captions
        _check_result(source, described, bad, max_bad_records)
        vocabulary = caption_vocabulary(captions, build_tokenizer) if build_tokenizer is not None else None
        if vocabulary is not None:
            save_tokenizer(vocabulary, folder / "tokenizer")
        _write_description(folder, source, name, described, bad)
    vocab_size = None if vocabulary is None else len(vocabulary)
    return ImportSummary(output, name, described, bad.count, bad.listed, num_dropped, vocab_size)


def find_source(
    source: Path, format: str | None, splits: list[str] | None, finders: Mapping[str, FindSplits] = FINDERS
) -> tuple[str, dict[str, list[Path]]]:
    """The format of a source and the files of its splits. Without a `format` the finders are tried in order."""
    if not source.exists():
        raise UserError(f"{source} does not exist.")
    if format is not None and format not in finders:
        raise UserError(f"--format is {format!r}; it is one of {', '.join(finders)}.")
    for name in finders if format is None else [format]:
        files = finders[name](source)
        if not files:
            continue
        if unusable := [split for split in files if not SPLIT_NAME.match(split)]:
            raise UserError(
                f"{source}: {unusable[0]!r} can't be the name of a split; use letters, digits, '_' and '-'."
            )
        unknown = [split for split in splits or [] if split not in files]
        if unknown:
            raise UserError(f"{source}: no split {unknown[0]!r}; it has {', '.join(files)}.")
        return name, {split: paths for split, paths in files.items() if splits is None or split in splits}
    tried = f"the format {format}" if format else f"any format this program reads ({', '.join(finders)})"
    raise UserError(f"{source} holds nothing in {tried}. docs/data.md shows what each looks like.", code="AT507")


def check_options(valid_share: float | None, build_tokenizer: int | None, max_bad_records: int) -> None:
    """Refuses numbers that no import can use."""
    if valid_share is not None and not 0 < valid_share < 1:
        raise UserError(f"--valid-share is {valid_share}; it is a share between 0 and 1, without the ends.")
    if build_tokenizer is not None and build_tokenizer <= len(SPECIAL_TOKENS):
        raise UserError(
            f"--build-tokenizer is {build_tokenizer}; {len(SPECIAL_TOKENS)} tokens are special, ask for more."
        )
    if max_bad_records < 0:
        raise UserError(f"--max-bad-records is {max_bad_records}; it is a number from 0.")


def _check_result(source: str, described: dict[str, dict[str, Any]], bad: BadRecords, max_bad_records: int) -> None:
    bad.refuse_beyond(max_bad_records, source)
    for split, counts in described.items():
        if counts["num_pairs"] == 0:
            raise UserError(
                f"{source}: the split {split} has no pair of an image and a caption ({counts['num_images']} images, "
                f"{counts['num_texts']} captions)."
            )


def _write_description(
    folder: Path, source: str, name: str, described: dict[str, dict[str, Any]], bad: BadRecords
) -> None:
    description = {
        "format_version": FORMAT_VERSION,
        "source": Path(source).name,
        "source_format": name,
        "num_bad_records_left_out": bad.count,
        "splits": described,
    }
    text = json.dumps(description, indent=2, ensure_ascii=False) + "\n"
    (folder / "dataset.json").write_text(text, encoding="utf-8")
