"""`accel-train migrate`: the script that starts the original Chinese-CLIP trainer, as a configuration of ours.

Nothing of the script is run, and none of its files are read or changed.
"""

import json
import os
import shutil
import textwrap
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from accel_train.config.load import load_config
from accel_train.config.yaml_text import write_yaml
from accel_train.errors import UserError
from accel_train.tools.migrate.options import OPTIONS, Values, read_options
from accel_train.tools.migrate.settings import Migration, migrate_options
from accel_train.tools.migrate.shell import Shell, Word
from accel_train.visible import visible

TRAINER = ("training/main.py", "cn_clip.training.main")
RANKS, NODES = ("nproc_per_node", "nproc-per-node"), ("nnodes",)
COMMENT_COLUMN = 44
WIDEST = 120
"""Columns of what is said; longer lines are hard to read."""


@dataclass(frozen=True, slots=True)
class Launch:
    """One start of the trainer: its options, how many processes it has, and where main.py lies."""

    options: list[str]
    ranks: int | None
    """None where it can't be told."""
    trainer_folder: str


def migrate(
    script: str | None,
    output: str,
    *,
    arguments: list[str],
    variables: dict[str, str],
    options: list[str],
    ranks: int | None,
    as_json: bool,
) -> None:
    """Writes the configuration `output` and prints what became of each option.

    script: the shell script; its positional arguments are `arguments`, and `variables` take the place of its own. options:
    words of the trainer's command line that count after the script's. Raises UserError, with nothing written.
    """
    if Path(output).exists():
        raise UserError(f"{output} exists already, and nothing is overwritten. Choose another file.")
    launch = _of_script(Path(script), arguments, variables) if script else Launch([], None, "cn_clip/training")
    if options:
        launch = _with_options(launch, options)
    found_ranks = ranks or launch.ranks
    if found_ranks is None:
        raise UserError(
            "how many GPUs the original ran on can't be told (--nproc_per_node and --nnodes of its launcher), and its "
            "--batch-size is for each of them. Give --ranks N."
        )
    values = read_options(launch.options)
    migration = migrate_options(values, found_ranks, launch.trainer_folder)
    _write(Path(output), _as_yaml(migration, script, found_ranks))
    commands = _next_commands(migration, output, found_ranks)
    if as_json:
        report = {"output": output, "ranks": found_ranks, "options": _rows(values, migration), "commands": commands}
        print(json.dumps(report, indent=1, ensure_ascii=False))
    else:
        _show(values, migration, output, commands)


def _of_script(path: Path, arguments: list[str], variables: dict[str, str]) -> Launch:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} can't be read as a shell script ({error}).") from error
    try:
        found = [words for words in Shell(arguments, variables).commands(text) if _place_of_trainer(words) is not None]
        if len(found) != 1:
            lines = f": lines {', '.join(str(words[0].line) for words in found)}" if found else ""
            raise UserError(
                f"{len(found)} commands start the original trainer (…/training/main.py), but one is wanted{lines}. Give "
                "the options themselves: accel-train migrate -o config.yaml --ranks N -- --train-data=… "
            )
        return _launch(found[0])
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _place_of_trainer(words: list[Word]) -> int | None:
    places = [place for place, word in enumerate(words) if word.text.endswith(TRAINER)]
    return places[0] if places else None


def _launch(words: list[Word]) -> Launch:
    place = _place_of_trainer(words)
    assert place is not None
    options = words[place + 1 :]
    for word in options:
        if word.unknown:
            name = f"{word.text} can't be told: " if word.text else "an option can't be told: "
            raise UserError(
                f"{name}{word.unknown}. Name the value: the script's arguments stand after it (accel-train migrate run.sh "
                "/data -o config.yaml), --set NAME=VALUE gives a variable."
            )
    per_node, nodes = _number(words[:place], RANKS), _number(words[:place], NODES)
    whole = (per_node or 0) * (1 if nodes is None else nodes)
    main = PurePosixPath(words[place].text)
    folder = str(main.parent) if main.suffix == ".py" else "cn_clip/training"
    return Launch([word.text for word in options], whole or None, folder)


def _number(words: list[Word], names: tuple[str, ...]) -> int | None:
    """A number among the launcher's options; 0 for one that is there and is no plain number."""
    for place, word in enumerate(words):
        name, equals, value = word.text.lstrip("-").partition("=")
        if word.text.startswith("--") and name in names:
            if not equals and place + 1 < len(words):
                word, value = words[place + 1], words[place + 1].text
            return int(value) if value.isdecimal() and word.unknown is None else 0
    return None


def _with_options(launch: Launch, options: list[str]) -> Launch:
    """Further words: the trainer's options alone, or a whole command."""
    words = [Word(text, 1) for text in options]
    if _place_of_trainer(words) is None:
        return Launch([*launch.options, *options], launch.ranks, launch.trainer_folder)
    whole = _launch(words)
    return Launch([*launch.options, *whole.options], whole.ranks or launch.ranks, whole.trainer_folder)


# The file


def _as_yaml(migration: Migration, script: str | None, ranks: int) -> str:
    head = [
        f"# Made by accel-train migrate from {Path(script).name if script else 'options of the original trainer'},",
        f"# which trained on {ranks} GPU{'s' if ranks > 1 else ''}. Any number gives the same training here.",
        *(f"# --{name}: {text}" for name, text in migration.attention.items()),
    ]
    lines = []
    for key, value in migration.settings.items():
        lines += (
            ["", *_section(key, value, migration.comments)]
            if isinstance(value, dict)
            else _entry(key, value, "", migration.comments.get(key))
        )
    return "\n".join([*head, "", *lines]) + "\n"


def _section(key: str, values: dict[str, Any], comments: dict[str, str]) -> list[str]:
    lines = [f"{key}:"]
    for name, value in values.items():
        lines += _entry(name, value, "  ", comments.get(f"{key}.{name}"))
    return lines


def _entry(key: str, value: Any, indent: str, comment: str | None) -> list[str]:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        items = [f"{indent}  - {_on_one_line(item)}" for item in value]
        return [_commented(f"{indent}{key}:", comment), *items]
    if isinstance(value, dict):
        return [_commented(f"{indent}{key}: {_on_one_line(value)}", comment)]
    return [_commented(indent + write_yaml({key: value}).rstrip("\n"), comment)]


class _Flow(yaml.SafeDumper):
    """Quotes all but plain words, so that a regular expression looks like one."""


_Flow.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, None if text.isidentifier() else "'"),
)


def _on_one_line(value: dict[str, Any]) -> str:
    return yaml.dump(
        value, Dumper=_Flow, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10_000
    ).strip()


def _commented(line: str, comment: str | None) -> str:
    return line if comment is None else f"{line:<{COMMENT_COLUMN}}  # {comment}"


def _write(target: Path, text: str) -> None:
    """Writes aside, loads what was written, and renames. Raises UserError, with nothing left, if it doesn't load."""
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        aside.write_text(text, encoding="utf-8")
        load_config(aside)
        os.link(aside, target)  # unlike a renaming, never over a file that has come since
    except UserError as error:
        problems = str(error).partition("\n")[2]
        raise UserError(f"the original's options don't make a valid configuration:\n{problems}") from error
    except OSError as error:
        raise UserError(f"{target} can't be written ({error.strerror}).") from error
    finally:
        aside.unlink(missing_ok=True)


# What is said


def _rows(values: Values, migration: Migration) -> list[dict[str, Any]]:
    return [
        {
            "option": f"--{option.name}",
            "value": values[option.name],
            "given": option.name in values.given,
            "key": option.key,
            "note": migration.attention.get(option.name, option.note),
            "attention": option.name in migration.attention,
        }
        for option in OPTIONS
    ]


def _next_commands(migration: Migration, output: str, ranks: int) -> list[str]:
    start = (
        f"accelerate launch --config_file launch/ddp.yaml --num_processes {ranks} -m accel_train"
        if ranks > 1
        else "accel-train"
    )
    return [
        f"accel-train import {migration.source} {migration.settings['data']['path']}",
        f"accel-train plan {output} --ranks {ranks}",
        f"{start} train {output}",
    ]


def _show(values: Values, migration: Migration, output: str, commands: list[str]) -> None:
    rows = _rows(values, migration)
    for row in [row for row in rows if row["given"] or row["attention"]]:
        given = row["option"] if row["value"] is True else f"{row['option']} {row['value']}"
        print(visible(f"{given} → {row['key']}"))  # on one line, however long, so that it can be searched for
        print(*_wrapped(f"{'! ' if row['attention'] else ''}{row['note']}", indent="    "), sep="\n")
    left = [row["option"].removeprefix("--") for row in rows if not row["given"]]
    if left:
        print("", *_wrapped(f"not given, so as the original has it by default: {', '.join(left)}"), sep="\n")
    print(f"\n{output} is written. Then:", *commands, sep="\n  ")


def _wrapped(text: str, *, indent: str = "") -> list[str]:
    """Lines for a terminal, with options and keys whole."""
    width = min(shutil.get_terminal_size().columns, WIDEST)
    return textwrap.wrap(
        visible(text),
        width,
        initial_indent=indent,
        subsequent_indent=indent,
        break_on_hyphens=False,
        break_long_words=False,
    )
