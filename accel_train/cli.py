"""The commands. Each function reads its arguments, imports what it needs, and calls one function of the package.

Nothing heavy is imported before the arguments and the configuration are right, so help and mistakes come at once.
"""

import argparse
import difflib
import inspect
import os
import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from accel_train import __version__
from accel_train.errors import CheckFailed, Stopped, UserError

if TYPE_CHECKING:
    from accel_train.config.schema import RunConfig

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it: 128 + SIGINT."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}\n{self.format_usage()}`{self.prog} --help` explains the arguments.")


def _parser(command: Callable[[list[str]], None], example: str) -> _Parser:
    """A parser whose help is the command's docstring and an example."""
    return _Parser(
        prog=f"accel-train {command.__name__.strip('_')}",
        description=inspect.getdoc(command),
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def _add_config(parser: _Parser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="configuration file (YAML)")
    parser.add_argument("overrides", metavar="section.key=value", nargs="*", default=[], help=OVERRIDES_HELP)


def _load(arguments: argparse.Namespace) -> "RunConfig":
    from accel_train.config.load import load_config

    return load_config(arguments.config, arguments.overrides)


def train(argv: list[str]) -> None:
    """Trains. Goes on by itself from the newest valid checkpoint in run_dir.

    Exit codes: 0 done, 1 training can't go on, 2 bad configuration or data, 75 stopped by a signal with a checkpoint
    written (start it again).
    """
    parser = _parser(train, "accel-train train configs/quickstart.yaml max_steps=20 num_epochs=null")
    _add_config(parser)
    parser.add_argument("--fresh", action="store_true", help="start anew; refuses a run_dir that holds a run")
    arguments = parser.parse_intermixed_args(argv)
    config = _load(arguments)

    from accel_train.train import train as run

    run(config, fresh=arguments.fresh)


def plan(argv: list[str]) -> None:
    """Shows what `train` would do, without reading weights or data beyond their sizes.

    Prints every parameter group with its learning rate, weight decay and clipping, the number of steps, and the memory
    of each rank by part.
    """
    parser = _parser(plan, "accel-train plan configs/chinese_clip_muge.yaml engine=zero2 --ranks 8 --picture lr.png")
    _add_config(parser)
    parser.add_argument("--ranks", type=_positive, metavar="N", help="plan for so many ranks (default: as launched)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--picture", metavar="PNG", help="draw the learning rate of every group over the run")
    arguments = parser.parse_intermixed_args(argv)
    config = _load(arguments)

    from accel_train.tools.plan import plan as run

    run(config, as_json=arguments.json, picture=arguments.picture, world_size=arguments.ranks)


def evaluate(argv: list[str]) -> None:
    """Scores a run, or an exported model, on a split: each sample once, over all ranks."""
    parser = _parser(evaluate, "accel-train evaluate runs/quickstart --split valid --contact-sheet sheet.png")
    parser.add_argument("run_or_export", metavar="RUN", help="run folder, or a folder written by `accel-train export`")
    parser.add_argument("overrides", metavar="section.key=value", nargs="*", default=[], help=OVERRIDES_HELP)
    parser.add_argument("--split", help="split of the dataset (default: data.valid_split)")
    parser.add_argument("--checkpoint", type=_checkpoint, default="best", metavar="C", help=CHECKPOINT_HELP)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--contact-sheet", metavar="PNG", help="draw some queries with the images found for them")
    arguments = parser.parse_intermixed_args(argv)

    from accel_train.tools.evaluation import evaluate_command

    evaluate_command(
        arguments.run_or_export,
        split=arguments.split,
        overrides=arguments.overrides,
        as_json=arguments.json,
        contact_sheet=arguments.contact_sheet,
        checkpoint=arguments.checkpoint,
    )


def export(argv: list[str]) -> None:
    """Writes a run's model as a Hugging Face folder, which `from_pretrained` loads."""
    parser = _parser(export, "accel-train export runs/quickstart exported/quickstart --checkpoint best")
    parser.add_argument("run", metavar="RUN", help="run folder")
    parser.add_argument("output", metavar="OUTPUT", help="folder to write; it must not exist yet")
    parser.add_argument("--checkpoint", type=_checkpoint, default="best", metavar="C", help=CHECKPOINT_HELP)
    arguments = parser.parse_args(argv)

    from accel_train.tools.export import export as run

    run(arguments.run, arguments.output, checkpoint=arguments.checkpoint)


def import_(argv: list[str]) -> None:
    """Turns images and captions of any known format into one dataset folder, and checks every record.

    Formats: chinese_clip_tsv, chinese_clip_lmdb, hf_datasets, parquet, jsonl, csv, image_folder.
    """
    parser = _parser(
        import_, "accel-train import downloads/pairs.csv data/pairs --valid-share 0.1 --build-tokenizer 8000"
    )
    parser.add_argument("source", metavar="SOURCE", help="file or folder to read")
    parser.add_argument("output", metavar="OUTPUT", help="dataset folder to write; it must not exist yet")
    parser.add_argument("--format", help="format of the source (default: the one that its files show)")
    parser.add_argument("--split", action="append", metavar="NAME", help="import only this split; may be repeated")
    parser.add_argument("--image-column", metavar="NAME", help="column with image files or bytes, in tables")
    parser.add_argument("--text-column", metavar="NAME", help="column with captions, in tables")
    parser.add_argument("--image-id-column", metavar="NAME", help="column that names the image, in tables")
    parser.add_argument("--text-id-column", metavar="NAME", help="column that names the caption, in tables")
    parser.add_argument(
        "--valid-share", type=float, metavar="SHARE", help="take this share of the images for validation"
    )
    parser.add_argument(
        "--build-tokenizer", type=int, metavar="N", help="make a tokenizer of N tokens from the captions"
    )
    parser.add_argument("--max-bad-records", type=int, default=0, metavar="N", help="leave out up to N bad records (0)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")
    arguments = parser.parse_args(argv)

    from accel_train.tools.import_data import import_data
    from accel_train.tools.import_summary import print_import

    summary = import_data(
        arguments.source,
        arguments.output,
        format=arguments.format,
        splits=arguments.split,
        image_column=arguments.image_column,
        text_column=arguments.text_column,
        image_id_column=arguments.image_id_column,
        text_id_column=arguments.text_id_column,
        valid_share=arguments.valid_share,
        build_tokenizer=arguments.build_tokenizer,
        max_bad_records=arguments.max_bad_records,
        show_progress=not arguments.json,
    )
    print_import(summary, as_json=arguments.json)


def doctor(argv: list[str]) -> None:
    """Shows what this machine and this launch really are: devices, ranks, backends, versions, disk."""
    parser = _parser(doctor, "accelerate launch --num_processes 2 -m accel_train doctor")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args(argv)

    from accel_train.tools.doctor import doctor as run

    run(as_json=arguments.json)


def schema(argv: list[str]) -> None:
    """Writes the JSON schema of configuration files, for completion and checks in an editor.

    A configuration that begins with `# yaml-language-server: $schema=PATH` uses it.
    """
    parser = _parser(schema, "accel-train schema schema.json")
    parser.add_argument("output", metavar="OUTPUT", nargs="?", help="file to write (default: standard output)")
    arguments = parser.parse_args(argv)

    from accel_train.tools.schema import schema as run

    run(arguments.output)


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "train": train,
    "plan": plan,
    "evaluate": evaluate,
    "import": import_,
    "export": export,
    "doctor": doctor,
    "schema": schema,
}
OVERRIDES_HELP = "changes to the configuration, such as data.micro_batch_size=16 or optimizer.towers.text.lr=1e-5"
CHECKPOINT_HELP = "best, latest, or the step of a checkpoint (default: best)"


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"found {text!r}; it must be a whole number above 0")
    return int(text)


def _checkpoint(text: str) -> str:
    """The name of a checkpoint, as its folder has it."""
    if text in ("best", "latest") or re.fullmatch(r"step_\d{8,}", text, re.ASCII):
        return text
    if text.isascii() and text.isdecimal():
        return f"step_{int(text):08d}"
    raise argparse.ArgumentTypeError(f"found {text!r}; it must be best, latest, or a step")


def _usage() -> str:
    lines = [f"  {name:<10}{(inspect.getdoc(command) or '').splitlines()[0]}" for name, command in COMMANDS.items()]
    return (
        "usage: accel-train COMMAND CONFIG [section.key=value ...]\n\n"
        + "\n".join(lines)
        + "\n\n`accel-train COMMAND --help` explains a command. Under several processes:\n"
        "  accelerate launch --config_file launch/ddp.yaml --num_processes 8 -m accel_train COMMAND CONFIG"
    )


def _run(argv: list[str]) -> None:
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
    elif argv[0] == "--version":
        print(f"accel-train {__version__}")
    elif argv[0] in COMMANDS:
        COMMANDS[argv[0]](argv[1:])
    else:
        near = difflib.get_close_matches(argv[0], COMMANDS, n=1, cutoff=0.4)
        hint = f"Nearest: {near[0]}." if near else f"The commands: {', '.join(COMMANDS)}."
        raise UserError(f"no command is called {argv[0]!r}. {hint} `accel-train --help` explains them.")


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns the exit code. What went wrong is said in words, not in a traceback."""
    try:
        _run(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
    except (UserError, CheckFailed, Stopped) as error:
        print(f"{_speaker()}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"{_speaker()}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13
    return 0


def run() -> NoReturn:
    """The program: `main`, then out.

    One of several ranks leaves without Python's own ending, in which gloo's threads, still alive, can abort a run that is
    complete ("terminate called without an active exception").
    """
    code = main()
    if os.environ.get("WORLD_SIZE", "1") != "1":
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _speaker() -> str:
    """`accel-train`, and which rank speaks where there are several."""
    rank, ranks = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    return "accel-train" if ranks == "1" else f"accel-train (rank {rank} of {ranks})"
