"""A checkpoint between its first byte and its name."""

import shutil
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from accel_train.checkpoint import files, folders
from accel_train.checkpoint.state import TrainState
from accel_train.engine.engine import Engine
from accel_train.inject import Faults

Part = tuple[files.FileRecord, files.Index]
"""What became of one rank's part."""


@dataclass(slots=True)
class Save:
    final: Path
    state: TrainState
    """As it was at this step."""
    about: dict[str, Any]
    began: float
    stalled: float = 0.0
    """Seconds that training has stood still for it."""
    part: Future[Part] | None = None
    """This rank's part, where a thread writes it."""

    @property
    def aside(self) -> Path:
        """Where it is until it has its name."""
        return self.final.with_name(f".{self.final.name}.partial")


def make_aside(save: Save, engine: Engine) -> None:
    """Rank 0: the folder that all ranks write to. Raises OSError."""
    if engine.is_main:
        shutil.rmtree(save.aside, ignore_errors=True)
        save.aside.mkdir(parents=True)


def publish(save: Save, parts: list[Part], engine: Engine, faults: Faults) -> None:
    """Rank 0, once all parts are on disk: completes the folder, syncs it, and gives it its name. Raises OSError."""
    if not engine.is_main:
        return
    records, indexes = zip(*parts, strict=True)
    files.write_json(save.aside / files.INDEX_FILE, files.joined_index(indexes))
    content = {
        "format": files.FORMAT,
        **asdict(save.state),
        "engine": engine.launch.engine,
        "world_size": engine.world_size,
        "versions": {name: version(name) for name in ("accel_train", "torch", "accelerate", "transformers")},
        **save.about,
        "files": [asdict(record) for record in [files.record_of(save.aside / files.INDEX_FILE), *records]],
    }
    files.write_state(save.aside, content)
    files.sync(save.aside)
    faults.at("publish", save.state.step)
    folders.move(save.aside, save.final)
    files.sync(save.final.parent)
