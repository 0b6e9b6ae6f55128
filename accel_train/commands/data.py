"""Commands that bring things in."""

import argparse
from collections.abc import Callable

from accel_train.commands.import_pairs import import_pairs
from accel_train.config.tasks import DEFAULT
from accel_train.errors import UserError

IMPORTS: dict[str, Callable[[list[str]], None]] = {"contrastive": import_pairs}
"""What a dataset is for decides which columns it has."""


def import_(argv: list[str]) -> None:
    """Turns data of any known format into one dataset folder, and checks every record.

    `--task NAME` says what the data is for; `accel-train import --task NAME --help` explains each kind.
    """
    chooser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    chooser.add_argument("--task", default=DEFAULT)
    chosen, others = chooser.parse_known_args(argv)
    if chosen.task not in IMPORTS:
        raise UserError(f"--task: found {chosen.task!r}; it must be one of {', '.join(IMPORTS)}.")
    IMPORTS[chosen.task](others)
