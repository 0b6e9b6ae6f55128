"""`accel-train import --task multimodal_llm`: spoken images to one dataset folder, with every record checked."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accel_train.data.arrow_split import FORMAT_VERSION
from accel_train.data.readers import jsonl
from accel_train.data.readers.records import BadRecord
from accel_train.data.readers.spoken_images import SpokenRecord, read, read_images
from accel_train.data.split_import import CHECK_SIZE, BadRecords
from accel_train.data.spoken_split import TASK, SpokenSplitWriter
from accel_train.data.text import caption_vocabulary, save_tokenizer
from accel_train.data.transforms import UnreadableImage, decode, open_image
from accel_train.data.wav import UnreadableAudio, read_wav
from accel_train.errors import UserError
from accel_train.tools.imports.pairs import check_options, find_source
from accel_train.tools.row_progress import counted
from accel_train.tools.written_aside import written_aside


@dataclass
class SpeechSummary:
    """What an import wrote and what it left out."""

    output: str
    splits: dict[str, dict[str, Any]]
    """Counts, seconds of speech and fingerprint of each split."""
    sample_rates: list[int]
    """Of the recordings, in samples a second."""
    num_bad: int
    bad_records: list[str]
    """The first of them: place and reason."""
    vocab_size: int | None
    """Size of the tokenizer that was built."""


def import_speech(
    source: str,
    output: str,
    *,
    images: str,
    text_columns: tuple[str, ...] = ("text",),
    format: str | None = None,
    splits: list[str] | None = None,
    build_tokenizer: int | None = None,
    max_bad_records: int = 0,
    show_progress: bool = True,
) -> SpeechSummary:
    """Writes the dataset folder `output` from `source`, with all its splits or those named in `splits`.

    Each of the `text_columns` of a line makes a sample of its own with the same image and recording. `images` is the file or
    folder that the image ids stand for. `build_tokenizer` makes a tokenizer of at most so many tokens from the captions of
    `train`. Recordings and images are decoded to check them, and stored as they are.
    """
    target = Path(output)
    if target.exists():
        raise UserError(f"{output} already exists. Import into a new folder, or remove this one first.")
    check_options(None, build_tokenizer, max_bad_records)
    if len(set(text_columns)) < len(text_columns):
        raise UserError(f"--text-column: {', '.join(text_columns)}; name each column once.")
    _, files = find_source(Path(source), format, splits, {"jsonl": jsonl.find_splits})
    train = "train" if "train" in files else next(iter(files))
    bad = BadRecords()
    written = _Written()
    with written_aside(target) as folder:
        for split, paths in files.items():
            records = list(counted(read(paths, text_columns), split, shown=show_progress))
            wanted = {record.image_id for record in records if isinstance(record, SpokenRecord)}
            kept = written.split(folder / split, records, read_images(Path(images), wanted), bad)
            if split == train:
                captions = kept
        bad.refuse_beyond(max_bad_records, source)
        for split, counts in written.described.items():
            if counts["num_samples"] == 0:
                raise UserError(f"{source}: the split {split} has no sample with an image, a recording and a caption.")
        vocabulary = None
        if build_tokenizer is not None:
            vocabulary = caption_vocabulary(captions, build_tokenizer)
            save_tokenizer(vocabulary, folder / "tokenizer")
        description = {
            "format_version": FORMAT_VERSION,
            "task": TASK,
            "source": Path(source).name,
            "num_bad_records_left_out": bad.count,
            "splits": written.described,
        }
        text = json.dumps(description, indent=2, ensure_ascii=False) + "\n"
        (folder / "dataset.json").write_text(text, encoding="utf-8")
    vocab_size = None if vocabulary is None else len(vocabulary)
    return SpeechSummary(output, written.described, sorted(written.sample_rates), bad.count, bad.listed, vocab_size)


class _Written:
    """The splits written so far."""

    def __init__(self) -> None:
        self.described: dict[str, dict[str, Any]] = {}
        self.sample_rates: set[int] = set()

    def split(
        self, folder: Path, records: list[SpokenRecord | BadRecord], images: dict[str, bytes], bad: BadRecords
    ) -> list[str]:
        """Writes one split and returns its captions. Images, recordings and equal captions are stored once."""
        writer = SpokenSplitWriter(folder)
        rows: dict[tuple[str, str], int] = {}
        seconds = 0.0
        for record in records:
            if isinstance(record, BadRecord):
                bad.add(record.where, record.reason)
                continue
            try:
                if ("images", record.image_id) not in rows:
                    if record.image_id not in images:
                        raise UnreadableImage("it is not among the images, or not as base64")
                    decode(open_image(images[record.image_id]), size=CHECK_SIZE)
                samples, rate = read_wav(record.audio)
            except UnreadableImage as error:
                bad.add(record.where, f"image {record.image_id!r}: {error}")
                continue
            except UnreadableAudio as error:
                bad.add(record.where, f"recording {record.audio_id!r}: {error}")
                continue
            self.sample_rates.add(rate)
            if ("recordings", record.audio_id) not in rows:
                seconds += len(samples) / rate
            named = [
                ("images", record.image_id, images[record.image_id]),
                ("recordings", record.audio_id, record.audio),
            ]
            for table, name, content in named:
                if (table, name) not in rows:
                    rows[table, name] = writer.add(table, name, content)
            for caption in record.captions:
                if ("texts", caption) not in rows:
                    rows["texts", caption] = writer.add("texts", f"text{len(rows)}", caption)
                parts = ("images", record.image_id), ("recordings", record.audio_id), ("texts", caption)
                writer.add_sample(*(rows[part] for part in parts))
        self.described[folder.name] = writer.close() | {"seconds_of_speech": round(seconds, 3)}
        return [name for table, name in rows if table == "texts"]


def print_speech_import(summary: SpeechSummary, *, as_json: bool) -> None:
    """A line for each split, then the sample rates and what was left out. With `as_json`, one object."""
    if as_json:
        print(json.dumps(asdict(summary), indent=1, ensure_ascii=False))
        return
    print(f"{summary.output}: written for the tasks multimodal_alignment and {TASK}")
    for split, counts in summary.splits.items():
        print(
            f"  {split}: {counts['num_samples']:,} samples of {counts['num_images']:,} images, "
            f"{counts['num_recordings']:,} recordings ({counts['seconds_of_speech'] / 60:.1f} minutes) and "
            f"{counts['num_texts']:,} captions"
        )
    rates = ", ".join(f"{rate:,}" for rate in summary.sample_rates)
    print(f"  sample rates: {rates} Hz; data.sample_rate is what they are resampled to")
    if summary.vocab_size is not None:
        print(f"  tokenizer: {summary.vocab_size:,} tokens; use it with data.tokenizer: dataset:tokenizer")
    if summary.num_bad:
        print(f"  left out: {summary.num_bad:,} bad records")
        print("".join(f"    {record}\n" for record in summary.bad_records), end="")
