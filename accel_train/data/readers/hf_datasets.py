"""Datasets of the Hugging Face library `datasets`, saved with `save_to_disk`: Arrow streams and a list of them.

The files are read directly, so the library itself is not needed.
"""

from collections.abc import Iterator
from pathlib import Path

from accel_train.data.readers import parquet
from accel_train.data.readers.records import Columns, Record
from accel_train.errors import UserError
from accel_train.json_text import read_json

STATE = "state.json"


def find_splits(source: Path) -> dict[str, list[Path]]:
    """Splits of a saved DatasetDict, or one saved Dataset as `train`, with their Arrow files in order."""
    if (source / "dataset_dict.json").is_file():
        return {state.parent.name: _files(state) for state in sorted(source.glob(f"*/{STATE}"))}
    if (source / STATE).is_file() and (source / "dataset_info.json").is_file():
        return {"train": _files(source / STATE)}
    return {}


def read(files: list[Path], columns: Columns) -> Iterator[Record]:
    """One record for each new image and each caption."""
    return parquet.read(files, columns)


def _files(state: Path) -> list[Path]:
    try:
        names = [str(item["filename"]) for item in read_json(state.read_text(encoding="utf-8"))["_data_files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{state}: not the state of a saved dataset ({error!r}).") from error
    if outside := [name for name in names if name != Path(name).name]:
        raise UserError(f"{state}: names the file {outside[0]!r}, which is not in its folder.")
    return [state.parent / name for name in names]
