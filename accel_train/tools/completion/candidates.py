"""What can follow on a command line of `accel-train`. The commands' own help says which options and arguments they have."""

import io
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path

from accel_train.tools.completion.keys import keys_of

YAML_ENDINGS = (".yaml", ".yml")
OVERRIDES = "section.key=value"
Commands = Mapping[str, Callable[[list[str]], None]]


@dataclass(frozen=True)
class Arguments:
    """Of one command."""

    options: dict[str, str]
    """What follows each option: empty for a switch, else a name, or {a,b} for a choice."""
    positionals: list[str]


def candidates(line: str, commands: Commands, named: Mapping[str, Iterable[str]]) -> list[str]:
    """What the last word of `line` can become. Those that end in `/`, `.` or `=` want more behind them.

    named: the words that an argument of that name can be.
    """
    *before, current = _words(line)
    if len(before) < 2:
        return _begun(current, [*commands, "--help", "--version"])
    command, given = before[1], before[2:]
    if command not in commands:
        return []
    arguments = _arguments(commands[command], given)
    if given and (follows := arguments.options.get(given[-1])):
        return _named(current, follows, named)
    if current.startswith("-"):
        return _begun(current, arguments.options)
    places = [word for word, after in zip(given, ["", *given], strict=False) if _is_place(word, after, arguments)]
    if OVERRIDES in arguments.positionals and len(places) >= arguments.positionals.index(OVERRIDES):
        return _overrides(current, next((Path(word) for word in places if word.endswith(YAML_ENDINGS)), None))
    if len(places) < len(arguments.positionals):
        return _named(current, arguments.positionals[len(places)], named)
    return []


def _words(line: str) -> list[str]:
    """As the shell would read them; the last one may be quoted and not yet closed, or empty."""
    for ending in ("", '"', "'"):
        with suppress(ValueError):
            words = shlex.split(line + ending)
            return [*words, ""] if not ending and (not line or line[-1].isspace()) else words
    return [*line.split(), ""]


def _arguments(command: Callable[[list[str]], None], given: list[str]) -> Arguments:
    """From the command's help. What depends on --task is that of the task given."""
    task = [word for at, word in enumerate(given) if "--task" in (word, given[at - 1] if at else "")]
    text = io.StringIO()
    with redirect_stdout(text), suppress(SystemExit):
        command([*(task if len(task) == 2 else []), "--help"])
    options: dict[str, str] = {}
    positionals: list[str] = []
    part = ""
    for line in text.getvalue().splitlines():
        if not line.startswith(" "):
            part = line
        elif re.match(r"  \S", line):
            head = re.split(r"\s{2,}", line.strip())[0]
            if head.startswith("-"):
                for option in head.split(", "):
                    name, _, follows = option.partition(" ")
                    options[name] = follows
            elif part == "positional arguments:":
                positionals.append(head)
    return Arguments(options, positionals)


def _is_place(word: str, before: str, arguments: Arguments) -> bool:
    """Whether a word is neither an option nor what an option takes."""
    return not word.startswith("-") and not arguments.options.get(before)


def _named(current: str, name: str, named: Mapping[str, Iterable[str]]) -> list[str]:
    if name.startswith("{"):
        return _begun(current, name.strip("{}").split(","))
    if name in named:
        return _begun(current, named[name])
    return _paths(current, YAML_ENDINGS if name in ("CONFIG", "YAML") else ())


def _begun(current: str, words: Iterable[str]) -> list[str]:
    return [word for word in words if word.startswith(current)]


def _paths(current: str, endings: tuple[str, ...]) -> list[str]:
    """Folders, and files with one of the endings, or any."""
    folder, _, begun = current.rpartition("/")
    shown = f"{folder}/" if "/" in current else ""
    try:
        items = sorted(Path(shown or ".").expanduser().iterdir())
    except OSError:
        return []
    found = []
    for item in items:
        is_folder = item.is_dir()
        hidden = item.name.startswith(".") and not begun.startswith(".")
        if item.name.startswith(begun) and not hidden and (is_folder or not endings or item.name.endswith(endings)):
            found.append(f"{shown}{item.name}{'/' if is_folder else ''}")
    return found


def _overrides(current: str, config: Path | None) -> list[str]:
    """Keys level by level, then values. The task and the names of the towers are those of the file."""
    text = ""
    if config is not None:
        with suppress(OSError, UnicodeDecodeError):
            text = config.expanduser().read_text(encoding="utf-8")
    task = re.search(r"^task:\s*([\w.:]+)", text, re.MULTILINE)
    keys = keys_of(task[1] if task else "contrastive")
    key, equals, value = current.partition("=")
    names = _towers(text)
    if equals:
        plain = re.sub(rf"^(optimizer\.towers)\.(?:{'|'.join(names) or '-'})\.", r"\1.*.", key)
        return [f"{key}={word}" for word in _begun(value, keys.get(plain, []))]
    found: dict[str, None] = {}
    for path in keys:
        for written in (
            [path.replace("*", name, 1) for name in names] if path.startswith("optimizer.towers.*") else [path]
        ):
            if written.startswith(current) and "*" not in written:
                step, dot, _ = written[len(current) :].partition(".")
                found[f"{current}{step}{dot or '='}"] = None
    return list(found)


def _towers(text: str) -> list[str]:
    """Names in the list `towers` of `optimizer`."""
    optimizer = re.search(r"^optimizer:\n(.*?)(?=^\S|\Z)", text, re.MULTILINE | re.DOTALL)
    return re.findall(r"^\s+-\s*\{?\s*name:\s*([a-z][a-z0-9_]*)", optimizer[1], re.MULTILINE) if optimizer else []
