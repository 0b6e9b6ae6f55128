"""Data for shipped configurations whose own is not inside the package, made up in a moment."""

from collections.abc import Callable
from pathlib import Path

from accel_train.config.load import load_config
from accel_train.config.multimodal_llm import MultimodalLlmConfig
from tests import labelled, rated, spoken

SAMPLE = "sample:emoji-zh"
MADE_UP: dict[str, Callable[[Path], Path]] = {
    "multimodal_alignment": spoken.write_dataset,
    "multimodal_llm": spoken.write_dataset,
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
    decoder = []
    if isinstance(loaded, MultimodalLlmConfig) and loaded.model.llm.pretrained is not None:
        decoder = [f"model.llm.pretrained={spoken.write_decoder(folder / 'decoder')}"]
    return [f"data.path={path}", "data.valid_split=valid", *afresh, *decoder]
