"""Commands that bring things in."""

import argparse
import re
from collections.abc import Callable

from accel_train.commands.arguments import make_parser, positive
from accel_train.commands.import_pairs import import_pairs
from accel_train.commands.import_ratings import import_ratings
from accel_train.commands.import_speech import import_speech
from accel_train.commands.import_texts import import_texts
from accel_train.errors import UserError

IMPORTS: dict[str, Callable[[list[str]], None]] = {
    "contrastive": import_pairs,
    "multimodal_alignment": import_speech,
    "multimodal_llm": import_speech,
    "scorer": import_ratings,
    "sequence_classification": import_texts,
}
"""What a dataset is for decides which columns it has."""


def import_(argv: list[str]) -> None:
    """Turns data of any known format into one dataset folder, and checks every record.

    `--task NAME` says what the data is for; `accel-train import --task NAME --help` explains each kind.
    """
    from accel_train.config.tasks import DEFAULT

    chooser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    chooser.add_argument("--task", default=DEFAULT)
    chosen, others = chooser.parse_known_args(argv)
    if chosen.task not in IMPORTS:
        raise UserError(f"--task: found {chosen.task!r}; it must be one of {', '.join(IMPORTS)}.")
    IMPORTS[chosen.task](others)


def migrate(argv: list[str]) -> None:
    """Turns a script that starts the original Chinese-CLIP trainer into a configuration.

    Each of its options is explained. The script is read, never run. Options of the trainer, or its whole command, may
    also stand after `--`; they count after those of the script.
    """
    at = argv.index("--") if "--" in argv else len(argv)
    parser = make_parser(
        migrate, "accel-train migrate run_scripts/muge_finetune_vit-b-16_rbt-base.sh /data -o muge.yaml"
    )
    parser.add_argument("script", metavar="SCRIPT", nargs="?", help="shell script that starts cn_clip/training/main.py")
    parser.add_argument("arguments", metavar="ARGUMENT", nargs="*", help="arguments of the script, its $1, $2, …")
    parser.add_argument(
        "-o", "--output", required=True, metavar="YAML", help="configuration to write; it must not exist yet"
    )
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a variable of the script")
    parser.add_argument("--ranks", type=positive, metavar="N", help="GPUs it ran on (default: what its launcher says)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")
    arguments = parser.parse_intermixed_args(argv[:at])
    options = argv[at + 1 :]
    if arguments.script is None and not options:
        parser.error("neither a script nor options after -- are given")

    from accel_train.tools.migrate.command import migrate as run

    run(
        arguments.script,
        arguments.output,
        arguments=arguments.arguments,
        variables=_variables(arguments.set),
        options=options,
        ranks=arguments.ranks,
        as_json=arguments.json,
    )


def _variables(given: list[str]) -> dict[str, str]:
    """Raises UserError for what is no NAME=VALUE."""
    for text in given:
        if re.match(r"\w+=", text) is None:
            raise UserError(f"--set: found {text!r}; it must be NAME=VALUE, the name of a variable without its $.")
    return dict(text.split("=", 1) for text in given)
