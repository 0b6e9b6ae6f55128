"""`accel-train import --task sequence_classification`: labelled texts to one dataset folder, with every record checked."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accel_train.data.arrow_split import FORMAT_VERSION
from accel_train.data.arrow_writer import content_key
from accel_train.data.labelled_split import TASK, LabelledSplitWriter
from accel_train.data.readers.labelled_texts import FORMATS, LabelledRecord, LabelledText, TextColumns, read_mapping
from accel_train.data.readers.records import BadRecord
from accel_train.data.split_import import VALID_SPLIT, BadRecords
from accel_train.data.text import caption_vocabulary, save_tokenizer
from accel_train.errors import UserError
from accel_train.tools.imports.pairs import check_options, find_source
from accel_train.tools.row_progress import counted
from accel_train.tools.written_aside import written_aside

MAX_NAMES_IN_AN_ERROR = 20


@dataclass
class TextImportSummary:
    """What an import wrote and what it left out."""

    output: str
    format: str
    labels: list[str]
    """Names of the classes, by label."""
    splits: dict[str, dict[str, Any]]
    """num_samples and fingerprint of each split."""
    num_bad: int
    bad_records: list[str]
    """The first of them: place and reason."""
    vocab_size: int | None
    """Size of the tokenizer that was built."""


def import_texts(
    source: str,
    output: str,
    *,
    format: str | None = None,
    splits: list[str] | None = None,
    columns: TextColumns = TextColumns(),  # noqa: B008 (immutable)
    valid_share: float | None = None,
    build_tokenizer: int | None = None,
    max_bad_records: int = 0,
    show_progress: bool = True,
) -> TextImportSummary:
    """Writes the dataset folder `output` from `source`, with all its splits or those named in `splits`.

    The classes are those of label-mapping.json or of `datasets`, else those that the split `train` (or the only one) has. A
    label that is no class makes its record a bad one. The other arguments are as in `import_data`; texts are held in memory.
    """
    target = Path(output)
    if target.exists():
        raise UserError(f"{output} already exists. Import into a new folder, or remove this one first.")
    check_options(valid_share, build_tokenizer, max_bad_records)
    kind, files = find_source(Path(source), format, splits, {name: finder for name, (finder, _) in FORMATS.items()})
    if valid_share is not None and (len(files) != 1 or VALID_SPLIT in files):
        raise UserError(f"--valid-share is for a source with one split, not 'valid'; {source} has {', '.join(files)}.")
    bad = BadRecords()
    texts: dict[str, list[LabelledText]] = {}
    for split, paths in files.items():
        records = FORMATS[kind][1](paths, columns)
        texts[split] = _sound(counted(records, split, shown=show_progress), bad)
    train = "train" if "train" in texts else next(iter(texts))
    classes = _classes(Path(source), files[train], texts[train])
    labels = list(dict.fromkeys(classes.values()))
    if valid_share is not None:
        texts = _divided(train, texts[train], valid_share)
    with written_aside(target) as folder:
        described = {split: _write(folder / split, found, classes, bad) for split, found in texts.items()}
        bad.refuse_beyond(max_bad_records, source)
        for split, counts in described.items():
            if counts["num_samples"] == 0:
                raise UserError(f"{source}: the split {split} has no text.")
        vocabulary = None
        if build_tokenizer is not None:
            vocabulary = caption_vocabulary([text.text for text in texts[train]], build_tokenizer)
            save_tokenizer(vocabulary, folder / "tokenizer")
        description = {
            "format_version": FORMAT_VERSION,
            "task": TASK,
            "source": Path(source).name,
            "source_format": kind,
            "num_bad_records_left_out": bad.count,
            "labels": labels,
            "splits": described,
        }
        text = json.dumps(description, indent=2, ensure_ascii=False) + "\n"
        (folder / "dataset.json").write_text(text, encoding="utf-8")
    vocab_size = None if vocabulary is None else len(vocabulary)
    return TextImportSummary(output, kind, labels, described, bad.count, bad.listed, vocab_size)


def print_text_import(summary: TextImportSummary, *, as_json: bool) -> None:
    """A line for each split, then the classes and what was left out. With `as_json`, one object."""
    if as_json:
        print(json.dumps(asdict(summary), indent=1, ensure_ascii=False))
        return
    print(f"{summary.output}: written from {summary.format}")
    for split, counts in summary.splits.items():
        print(f"  {split}: {counts['num_samples']:,} texts")
    print(f"  {len(summary.labels)} labels: {_listed(summary.labels)}")
    if summary.vocab_size is not None:
        print(f"  tokenizer: {summary.vocab_size:,} tokens; use it with data.tokenizer: dataset:tokenizer")
    if summary.num_bad:
        print(f"  left out: {summary.num_bad:,} bad records")
        print("".join(f"    {record}\n" for record in summary.bad_records), end="")


def _sound(records: Iterable[LabelledRecord], bad: BadRecords) -> list[LabelledText]:
    """The records of a split that can be used, ids once each."""
    found: list[LabelledText] = []
    ids: set[str] = set()
    for record in records:
        if isinstance(record, BadRecord):
            bad.add(record.where, record.reason)
        elif record.text_id in ids:
            bad.add(record.where, f"text id {record.text_id!r} came before")
        else:
            found.append(record)
            if record.text_id is not None:
                ids.add(record.text_id)
    return found


def _classes(source: Path, paths: list[Path], texts: list[LabelledText]) -> dict[str, str]:
    """Name of the class for each label of the source, in the order of the classes."""
    mapping = read_mapping(source, paths)
    if mapping is not None:
        return mapping
    labels = {text.label for text in texts}
    if len(labels) < 2:
        raise UserError(
            f"{source}: {paths[0].name} has only the label {_listed(sorted(labels))}; classes are two or more."
        )
    numbers = all(label.isdecimal() for label in labels)
    return {label: label for label in sorted(labels, key=(lambda label: (int(label), label)) if numbers else None)}


def _divided(split: str, texts: list[LabelledText], valid_share: float) -> dict[str, list[LabelledText]]:
    """By the text alone, so that copies of one text never stand on both sides."""
    sides: dict[str, list[LabelledText]] = {split: [], VALID_SPLIT: []}
    for text in texts:
        in_valid = content_key(text.text.encode() + b"side") < valid_share * 2**63
        sides[VALID_SPLIT if in_valid else split].append(text)
    return sides


def _write(folder: Path, texts: list[LabelledText], classes: dict[str, str], bad: BadRecords) -> dict[str, Any]:
    """One split. A label may be given as in the source or by the name of its class."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(classes.values()))}
    writer = LabelledSplitWriter(folder)
    for text in texts:
        label = numbers.get(classes.get(text.label, text.label))
        if label is None:
            bad.add(text.where, f"unknown label {text.label!r}; known are {_listed(list(classes))}")
            continue
        writer.add(text.text_id or str(writer.num_samples), text.text, label)
    return writer.close()


def _listed(names: list[str]) -> str:
    more = f" … ({len(names)} in all)" if len(names) > MAX_NAMES_IN_AN_ERROR else ""
    return ", ".join(names[:MAX_NAMES_IN_AN_ERROR]) + more
