"""What the commands' arguments have in common."""

import argparse
import inspect
import math
import re
import shutil
import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from accel_train.errors import UserError
from accel_train.interrupts import uninterrupted
from accel_train.quiet import be_quiet

if TYPE_CHECKING:
    from accel_train.config.schema import RunConfig

OVERRIDES_HELP = "changes to the configuration, such as data.micro_batch_size=16 or optimizer.towers.text.lr=1e-5"
IMPORTED_TASKS = (
    "contrastive",
    "multimodal_alignment",
    "multimodal_llm",
    "scorer",
    "sequence_classification",
)
CHECKPOINT_HELP = "best, latest, or the step of a checkpoint (default: best)"


MAX_COLUMNS = 120
"""Longer lines of prose are hard to read, on the widest terminal too."""


def columns() -> int:
    """Of the terminal, or 80 where there is none, as far as they serve reading."""
    return min(shutil.get_terminal_size().columns, MAX_COLUMNS)


def wrapped(text: str, width: int, *, indent: str = "") -> list[str]:
    """Lines of whole words; options and paths are not broken at their hyphens. Lines after the first are indented."""
    return textwrap.wrap(text, width, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False)


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(
            f"{self.prog.removeprefix('accel-train ')}: {message}. `{self.prog} --help` explains the arguments."
        )


def make_parser(command: Callable[[list[str]], None], example: str, *, name: str | None = None) -> Parser:
    """A parser whose help is the command's docstring and an example. `name` where the function is called otherwise."""
    parser = Parser(
        prog=f"accel-train {name or command.__name__}",
        description=inspect.getdoc(command),
        epilog=f"example:\n  {example}",
        formatter_class=_Help,
        allow_abbrev=False,
    )
    parser.add_argument("--quiet", action=_Quiet, nargs=0, help="say only results, warnings and errors")
    return parser


class _Help(argparse.HelpFormatter):
    """Wraps paragraph by paragraph to the terminal. One with an indented line, such as the example, stays as it is."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=columns())

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = (
            paragraph if "\n " in paragraph else "\n".join(wrapped(" ".join(paragraph.split()), width))
            for paragraph in text.split("\n\n")
        )
        return "\n\n".join(paragraphs)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return wrapped(" ".join(text.split()), width)


class _Quiet(argparse.Action):
    def __call__(self, *_: object) -> None:
        be_quiet()


def add_config(parser: Parser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="configuration file (YAML)")
    parser.add_argument("overrides", metavar="section.key=value", nargs="*", default=[], help=OVERRIDES_HELP)


def add_import(parser: Parser) -> None:
    """What every kind of import takes."""
    parser.add_argument("source", metavar="SOURCE", help="file or folder to read")
    parser.add_argument("output", metavar="OUTPUT", help="dataset folder to write; it must not exist yet")
    parser.add_argument(
        "--task",
        metavar="NAME",
        help=f"what the data is for: {', '.join(IMPORTED_TASKS)} (default: contrastive); `accel-train import --task NAME "
        "--help` explains each",
    )
    parser.add_argument("--format", help="format of the source (default: the one that its files show)")
    parser.add_argument("--split", action="append", metavar="NAME", help="import only this split; may be repeated")
    parser.add_argument(
        "--max-bad-records", type=int, default=0, metavar="N", help="leave out up to N bad records (default: 0)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")


def load(arguments: argparse.Namespace) -> "RunConfig":
    with uninterrupted():  # pydantic drops an exception that a signal raises while it builds the sections
        from accel_train.config.load import load_config

    return load_config(arguments.config, arguments.overrides)


def positive(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"found {text!r}; it must be a whole number above 0")
    return int(text)


def rates(text: str) -> list[float]:
    """Learning rates, divided by commas."""
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(0 < rate < math.inf for rate in found):
        raise argparse.ArgumentTypeError(f"found {text!r}; it must be rates above 0, such as 1e-5,1e-4")
    return found


def checkpoint_name(text: str) -> str:
    """The name of a checkpoint, as its folder has it."""
    if text in ("best", "latest") or re.fullmatch(r"step_\d{8,}", text, re.ASCII):
        return text
    if text.isascii() and text.isdecimal():
        return f"step_{int(text):08d}"
    raise argparse.ArgumentTypeError(f"found {text!r}; it must be best, latest, or a step")
