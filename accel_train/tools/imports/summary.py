"""What `accel-train import` says when it is done."""

import json
from dataclasses import asdict

from accel_train.tools.imports.pairs import ImportSummary


def print_import(summary: ImportSummary, *, as_json: bool) -> None:
    """One line for each split, then what was left out and why. With `as_json`, one object."""
    print(json.dumps(asdict(summary), indent=1, ensure_ascii=False) if as_json else "\n".join(_lines(summary)))


def _lines(summary: ImportSummary) -> list[str]:
    lines = [f"{summary.output}: written from {summary.format}"]
    for split, counts in summary.splits.items():
        lines.append(
            f"  {split}: {counts['num_images']:,} images, {counts['num_texts']:,} captions, {counts['num_pairs']:,} pairs"
        )
    if summary.vocab_size is not None:
        lines.append(f"  tokenizer: {summary.vocab_size:,} tokens; use it with data.tokenizer: dataset:tokenizer")
    if summary.num_bad:
        lines.append(
            f"  left out: {summary.num_bad:,} bad records, {summary.num_captions_dropped:,} captions without an image"
        )
        lines += [f"    {record}" for record in summary.bad_records]
        if summary.num_bad > len(summary.bad_records):
            lines.append(f"    ... and {summary.num_bad - len(summary.bad_records):,} more")
    return lines
