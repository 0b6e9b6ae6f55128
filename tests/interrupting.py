"""Runs commands and sends them a signal in their midst, each in a fork of one process that has imported everything.

One JSON request a line on stdin: argv, the folder to run in, a signal, and at which call of a function of the package it is
sent (null: never). The answer is a line too: exit code, both outputs, how many calls there were, and whether a process that
the command started is still there.
"""

import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import Any

import accel_train
import accel_train.tools.bench.command
import accel_train.tools.embed
import accel_train.tools.evaluation
import accel_train.tools.export
import accel_train.tools.find_lr.command
import accel_train.tools.imports.pairs
import accel_train.tools.init.command
import accel_train.tools.migrate.command
import accel_train.tools.plan.command
import accel_train.tools.profile.command
import accel_train.tools.replay
import accel_train.tools.report.command
import accel_train.tools.search.command
import accel_train.tools.verify.resume_check
import accel_train.tools.verify.step_check
import accel_train.train
from accel_train.cli import main
from accel_train.tools import row_progress

PACKAGE = str(Path(accel_train.__file__).parent)
SECONDS_TO_LEAVE = 5.0
"""For processes that the command has told to end."""


def live(request: dict[str, Any], outputs: list[Path], calls: Path) -> int:
    """A child's life, up to its exit code."""
    os.setsid()
    for descriptor, path in enumerate(outputs, 1):
        os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY), descriptor)
    os.chdir(request["folder"])
    os.environ["TMPDIR"] = f"{request['folder']}/tmp"
    tempfile.tempdir = None
    row_progress.SECONDS_BETWEEN_LINES = 0.0
    count = 0

    def watch(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        if frame.f_code.co_filename.startswith(PACKAGE):
            count += 1
            if count == request["at"]:
                os.kill(os.getpid(), request["signal"])

    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.settrace(watch)
    try:
        return main(request["argv"])
    finally:
        sys.settrace(None)
        calls.write_text(str(count))


def leaves_a_process(group: int) -> bool:
    """Whether a member of the process group is there, after a while in which it may end."""
    ends = time.monotonic() + SECONDS_TO_LEAVE
    while time.monotonic() < ends:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.05)
    os.killpg(group, signal.SIGKILL)
    return True


def answer(request: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        out, err, calls = (Path(scratch) / name for name in ("out", "err", "calls"))
        child = os.fork()
        if child == 0:
            code = 99
            try:
                code = live(request, [out, err], calls)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        _, status = os.waitpid(child, 0)
        return {
            "code": os.waitstatus_to_exitcode(status),
            "out": out.read_text(encoding="utf-8"),
            "err": err.read_text(encoding="utf-8"),
            "calls": int(calls.read_text()) if calls.exists() else 0,
            "leaves_a_process": leaves_a_process(child),
        }


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)
