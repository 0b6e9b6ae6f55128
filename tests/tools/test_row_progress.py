"""A pass over rows says how far it is where nobody watches a terminal, and at the speed of this start alone."""

import io

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


@pytest.mark.parametrize(
    ("seconds", "words"), [(-1, "0 s"), (8.4, "8 s"), (59.7, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words
