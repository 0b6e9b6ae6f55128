"""The batch script launch/train.sbatch with other settings at its top."""

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

import accel_train
from accel_train.errors import UserError

LAUNCH_FOLDER = Path(accel_train.__file__).parent / "launch"
DIRECTIVE = re.compile(r"#SBATCH --([a-z-]+)")
SETTING = re.compile(r"([a-z_]+)=")
SHELL_COMMENT = re.compile(r"\s+#.*$")


@dataclass(frozen=True, slots=True)
class Job:
    """What a filled-in script differs in from the one that is shipped."""

    directives: dict[str, str | None]
    """Options of sbatch by name. One that the script has is replaced, or left out if it is None; others are added."""
    settings: dict[str, str | list[str]]
    """Variables of the script by name; a list becomes an array."""
    added: list[str] = field(default_factory=list)
    """Further options of sbatch, as `name=value` or `name`."""


def fill_in(job: Job) -> str:
    """The text of the script. Raises UserError for a value that a script can't hold."""
    template = (LAUNCH_FOLDER / "train.sbatch").read_text(encoding="utf-8")
    head, mark, body = template.partition("set -euo pipefail")
    assert mark, "settings end where the program begins"
    directives, settings = dict(job.directives), dict(job.settings)
    lines = []
    for line in head.splitlines():
        if found := DIRECTIVE.match(line):
            name = found[1]
            value = directives.pop(name, "")
            if value is None:
                continue
            lines.append(_directive(name, value) if value else line)
        elif (found := SETTING.match(line)) and found[1] in settings:
            comment = SHELL_COMMENT.search(line)
            lines.append(f"{found[1]}={_shell_value(settings.pop(found[1]))}{comment[0] if comment else ''}")
        else:
            lines.append(line)
    assert not settings, f"the script has no settings named {', '.join(settings)}"
    given = [_directive(name, value) for name, value in directives.items() if value]
    given += [_directive(*option.split("=", 1)) for option in job.added]
    last = max(number for number, line in enumerate(lines) if DIRECTIVE.match(line))
    lines[last + 1 : last + 1] = given
    return "\n".join([*lines, ""]) + mark + body


def _directive(name: str, value: str | None = None) -> str:
    if any(sign in f"{name}{value}" for sign in '"\n\\'):
        raise UserError(
            f"--{name}: a line of #SBATCH can't hold {value!r}. Use a value without quotes and backslashes."
        )
    if value is None:
        return f"#SBATCH --{name}"
    return f'#SBATCH --{name}="{value}"' if re.search(r"[\s#']", value) else f"#SBATCH --{name}={value}"


def _shell_value(value: str | list[str]) -> str:
    if isinstance(value, list):
        return f"({' '.join(shlex.quote(item) for item in value)})"
    return shlex.quote(value)
