"""The program `accel-train`: finds the command, and turns what went wrong into words and an exit code.

Nothing heavy is imported before the arguments and the configuration are right, so help and mistakes come at once.
"""

import codecs
import difflib
import errno
import inspect
import io
import os
import signal
import sys
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import NoReturn

from accel_train import __version__
from accel_train.commands.arguments import columns, wrapped
from accel_train.commands.bench import bench
from accel_train.commands.completion import completion_of
from accel_train.commands.data import import_, migrate
from accel_train.commands.explain import explain
from accel_train.commands.find_lr import find_lr
from accel_train.commands.init import init
from accel_train.commands.machine import doctor, schema
from accel_train.commands.models import embed, evaluate, export
from accel_train.commands.plan import plan
from accel_train.commands.profile import profile
from accel_train.commands.report import report
from accel_train.commands.search import search
from accel_train.commands.slurm import slurm
from accel_train.commands.sweep import sweep
from accel_train.commands.training import replay, train
from accel_train.commands.verify import verify
from accel_train.errors import DONE, OUTCOME_FILE, CheckFailed, Stopped, UserError, explained_by
from accel_train.interrupts import Terminated, ending_by_sigterm
from accel_train.quiet import as_before
from accel_train.visible import visible

_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
"""What the system says of a place that is full or closed to this user."""
INTERRUPTED = 130
TERMINATED = 143
"""Exit codes after Ctrl-C and SIGTERM, as shells have them: 128 + the signal's number."""


GROUPS: dict[str, dict[str, Callable[[list[str]], None]]] = {
    "Set up": {"init": init, "import": import_, "migrate": migrate, "doctor": doctor},
    "Train": {"plan": plan, "verify": verify, "find-lr": find_lr, "train": train, "sweep": sweep, "slurm": slurm},
    "Look": {
        "report": report,
        "evaluate": evaluate,
        "bench": bench,
        "profile": profile,
        "replay": replay,
        "explain": explain,
    },
    "Use": {"search": search, "embed": embed, "export": export},
    "Editor and shell": {"schema": schema},
}
"""By purpose, in the order in which one meets them."""
COMMANDS: dict[str, Callable[[list[str]], None]] = {
    name: command for group in GROUPS.values() for name, command in group.items()
}
GROUPS["Editor and shell"]["completion"] = COMMANDS["completion"] = completion_of(COMMANDS)


def _usage() -> str:
    width = columns()
    lines = [f"accel-train {__version__}", "", "usage: accel-train COMMAND CONFIG [section.key=value ...]"]
    for title, group in GROUPS.items():
        lines += ["", f"{title}:"]
        for name, command in group.items():
            lines += wrapped(f"  {name:<11} {_first_line(command)}", width, indent=" " * 14)
    notes = (
        "Begin with `accel-train init WORKLOAD DATA`. `accel-train COMMAND --help` explains a command.",
        "--json prints one JSON value, --quiet only results, warnings and errors.",
        "Exit codes: 0 done, 1 a check failed, 2 bad configuration or data, 75 stopped by a signal with a checkpoint.",
        "On several GPUs: torchrun --nproc-per-node 8 -m accel_train COMMAND CONFIG",
    )
    return "\n".join([*lines, "", *(line for note in notes for line in wrapped(note, width, indent="  "))])


def _first_line(command: Callable[[list[str]], None]) -> str:
    return (inspect.getdoc(command) or "").splitlines()[0]


def _run(argv: list[str]) -> None:
    for argument in argv:
        try:
            argument.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"the argument '{argument}' is not text in the encoding {sys.getfilesystemencoding()}. Set LANG=C.UTF-8 or "
                "another UTF-8 locale; a file whose name is not UTF-8 needs another name."
            ) from error
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
    elif argv[0] == "--version":
        print(f"accel-train {__version__}")
    elif argv[0] in COMMANDS:
        COMMANDS[argv[0]](argv[1:])
    else:
        near = difflib.get_close_matches(argv[0], COMMANDS, n=1, cutoff=0.6)
        hint = f"Nearest: {near[0]}." if near else f"The commands: {', '.join(COMMANDS)}."
        raise UserError(f"no command is called {argv[0]!r}. {hint} `accel-train --help` explains them.")


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns the exit code. What went wrong is said in words, not in a traceback."""
    # Training answers signals by itself. So do launchers for their ranks, which may wait where no exception comes.
    alone = os.environ.get("WORLD_SIZE", "1") == "1"
    try:
        with as_before(), ending_by_sigterm() if alone else nullcontext():
            _run(sys.argv[1:] if argv is None else argv)
            sys.stdout.flush()
    except (UserError, CheckFailed, Stopped) as error:
        pointer = "" if error.code is None else f" {explained_by(error.code)}"
        print(f"{_speaker()}: {visible(str(error))}{pointer}", file=sys.stderr)
        _leave_outcome(error.outcome, str(error))
        return error.exit_code
    except Terminated:
        print(f"{_speaker()}: ended by SIGTERM", file=sys.stderr)
        return TERMINATED
    except KeyboardInterrupt:
        print(f"{_speaker()}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        _discard_output()
        return 128 + 13
    except OSError as error:
        if error.errno not in _OF_THE_DISK:
            raise  # a bug, which its traceback tells more of
        if error.filename is None:
            _discard_output()
        message = f"{error.filename or 'the output'}: {error.strerror}. Mend that place, or name another one."
        print(f"{_speaker()}: {visible(message)}", file=sys.stderr)
        _leave_outcome(CheckFailed.outcome, message)
        return CheckFailed.exit_code
    _leave_outcome(DONE, "")
    return 0


def _leave_outcome(word: str, message: str) -> None:
    """For a batch script. Any rank may write, since all have the same to say; one that is killed or crashes says nothing."""
    if path := os.environ.get(OUTCOME_FILE):
        aside = Path(f"{path}.{os.environ.get('RANK', '0')}")
        with suppress(OSError):  # a full disk, for example: then it is as if the rank had crashed
            aside.write_text(f"{word} {' '.join(message.split())}\n", encoding="utf-8")
            aside.replace(path)


def run() -> NoReturn:
    """The program: `main`, then out.

    One of several ranks leaves without Python's own ending, in which gloo's threads, still alive, can abort a run that is
    complete ("terminate called without an active exception").
    """
    _open_standard_streams()
    code = main()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interpreter that ends has nothing left to interrupt
    if os.environ.get("WORLD_SIZE", "1") != "1":
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _discard_output() -> None:
    """Else what is still in its buffer would fail once more at the end."""
    with suppress(io.UnsupportedOperation):  # a notebook's output is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _text_to(number: int) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.FileIO(number, "w", closefd=False), encoding="utf-8", write_through=True)


def _as_json_escapes(error: UnicodeError) -> tuple[str, int]:
    """What an encoding lacks in units of UTF-16, so that `--json` stays JSON: Python has other escapes."""
    assert isinstance(error, UnicodeEncodeError)
    pairs = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass").hex(" ", 2).split()
    return "".join(f"\\u{pair}" for pair in pairs), error.end


def _open_standard_streams() -> None:
    """A daemon may start a program without them: then the next file that is opened would be its output.

    Where the terminal's encoding lacks a sign, that is written by its number.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stdout is None:
        sys.stdout = _text_to(1)
    if sys.stderr is None:
        sys.stderr = _text_to(2)
    if isinstance(sys.stdout, io.TextIOWrapper):
        codecs.register_error("accel_train.json", _as_json_escapes)
        sys.stdout.reconfigure(errors="accel_train.json")


def _speaker() -> str:
    """`accel-train`, and which rank speaks where there are several."""
    rank, ranks = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    return "accel-train" if ranks == "1" else f"accel-train (rank {rank} of {ranks})"
