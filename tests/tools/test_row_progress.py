"""A pass over rows says how far it is where nobody watches a terminal, and at the speed of this start alone."""

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from accel_train import quiet
from accel_train.tools import row_progress
from accel_train.tools.row_progress import RowProgress, duration


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(row_progress.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize("shown", [True, False])
def test_plain_lines_go_to_the_errors(shown: bool, clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with RowProgress("images", 1000, done=400, shown=shown) as progress:
        for _ in range(4):
            clock[0] += 20
            progress.advance(100)
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = ["images: 600 of 1000, 5.0 rows/s, 1 min 20 s left", "images: 800 of 1000, 5.0 rows/s, 40 s left"]
    assert captured.err.splitlines() == (lines if shown else [])


def test_without_a_total_there_is_a_count(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with RowProgress("train", None, shown=True, unit="records") as progress:
        clock[0] += 40
        progress.advance(80)
    assert capsys.readouterr().err == "train: 80, 2.0 records/s\n"


def test_quiet_shows_nothing(
    clock: list[float], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(quiet.VARIABLE, "1")
    with RowProgress("images", 10, shown=True) as progress:
        clock[0] += 100
        progress.advance(5)
    assert capsys.readouterr().err == ""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("term", "colour", "live"), [("xterm", True, True), ("xterm", False, True), ("dumb", True, False)]
)
def test_a_terminal_has_a_bar_and_a_dumb_one_has_lines(
    term: str, colour: bool, live: bool, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if not colour:
        monkeypatch.setenv("NO_COLOR", "1")
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    with RowProgress("images", 1000, shown=True) as progress:
        clock[0] += 40
        progress.advance(200)
    text = screen.getvalue()
    assert ("200/1000" in text) == live
    assert ("images: 200 of 1000, 5.0 rows/s, 2 min 40 s left" in text) == (not live)
    assert ("\x1b[3" in text) == (live and colour)  # a colour
    assert ("\x1b" in text) == live


def test_a_slow_pass_says_how_long_each_takes(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with RowProgress("trials", 4, shown=True, unit="trials") as progress:
        clock[0] += 50
        progress.advance()
    assert capsys.readouterr().err == "trials: 1 of 4, 50.0 s each, 2 min 30 s left\n"


SHOWS = """
import sys, time
from accel_train.tools.row_progress import RowProgress
print("before")
with RowProgress(sys.argv[1], 2_000_000, shown=True, unit="samples") as progress:
    for number in range(4):
        print(f"line {number}", flush=True)
        progress.advance(123_457)
        time.sleep(0.15)
    if sys.argv[2] == "interrupted":
        raise KeyboardInterrupt
print("after")
"""


def on_a_terminal(columns: int, *argv: str, stdout: int | None = None) -> str:
    """What a terminal of this width was sent; standard output too, unless it goes elsewhere."""
    own, other = pty.openpty()
    fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR", "LINES")}
    command = [sys.executable, "-c", SHOWS, *argv]
    with subprocess.Popen(
        command, stdin=other, stdout=stdout or other, stderr=other, env=environment | {"TERM": "xterm"}
    ) as process:
        os.close(other)
        sent = b""
        while True:
            try:
                piece = os.read(own, 65536)
            except OSError:  # the other end is closed
                break
            if not piece:
                break
            sent += piece
        process.wait(60)
    os.close(own)
    return sent.decode()


def screen_after(sent: str) -> tuple[list[str], list[str]]:
    """Lines that are on the screen at the end, and every state that one of them had; of what rich sends alone."""
    lines, row, states = [""], 0, []
    for part in re.split(r"(\x1b\[[0-9;?]*[A-Za-z]|\r|\n)", sent):
        if part == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif part == "\x1b[2K":
            states.append(lines[row])
            lines[row] = ""
        elif found := re.fullmatch(r"\x1b\[(\d*)A", part):
            row -= int(found[1] or 1)
        elif part not in ("", "\r") and not part.startswith("\x1b"):
            lines[row] += part
    return [line.rstrip() for line in lines if line.strip()], states


@pytest.mark.parametrize("columns", [40, 80, 120])
@pytest.mark.parametrize("end", ["done", "interrupted"])
def test_a_bar_is_one_line_and_vanishes(columns: int, end: str) -> None:
    sent = on_a_terminal(columns, "reading the reference's batch", end)
    screen, states = screen_after(sent)
    assert screen[:5] == ["before", *(f"line {number}" for number in range(4))]
    assert screen[5:] == ["after"] if end == "done" else "Traceback" in screen[5]
    bars = [state for state in states if state.strip()]
    assert bars
    assert max(map(len, bars)) <= columns, "else the terminal wraps it"
    if columns >= 80:
        assert any(re.search(r"/2000000 .* samples/s left 0:00:\d\d", bar) for bar in bars)
    assert sent.rindex("\x1b[?25h") > sent.rindex("\x1b[?25l"), "the cursor is back"


def test_results_go_to_a_file_while_a_bar_is_on_the_terminal(tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as out:
        sent = on_a_terminal(80, "rows", "done", stdout=out.fileno())
    lines = ["before", *(f"line {number}" for number in range(4)), "after"]
    assert (tmp_path / "out").read_text().splitlines() == lines
    assert "line" not in sent


@pytest.mark.parametrize(
    ("seconds", "words"), [(-1, "0 s"), (8.4, "8 s"), (59.7, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words
