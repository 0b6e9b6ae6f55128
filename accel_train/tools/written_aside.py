"""A folder that is there as a whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accel_train.errors import UserError


@contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """A folder beside `target` that takes its name at the end, and vanishes if anything goes wrong before."""
    folder = target.parent / f".{target.name}.importing-{os.getpid()}"
    try:
        folder.mkdir(parents=True)
        yield folder
        folder.rename(target)
    except OSError as error:
        raise UserError(f"{target}: the dataset can't be written ({error}).") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
