"""Data for shipped configurations whose own is not inside the package, made up in a moment."""

from collections.abc import Callable
from pathlib import Path

from accel_train.config.load import load_config
from tests import labelled, rated

SAMPLE = "sample:emoji-zh"
MADE_UP: dict[str, Callable[[Path], Path]] = {
    "scorer": rated.write_dataset,
    "sequence_classification": labelled.write_dataset,
}
"""Writes a dataset with the splits train and valid, by task. Other tasks have the sample."""


def data_for(config: Path, folder: Path) -> list[str]:
    """Changes that give a configuration data: in `folder`, or the sample."""
    loaded = load_config(config)
    write = MADE_UP.get(loaded.task)
    path = SAMPLE if write is None else str(write(folder / "data"))
    afresh = [] if loaded.initialize_from is None else ["initialize_from=null"]
    return [f"data.path={path}", "data.valid_split=valid", *afresh]
