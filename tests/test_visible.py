"""What others wrote can't command a terminal, wherever this program says it."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel_train.cli import main
from accel_train.data.split_import import BadRecords
from accel_train.run_log import RunLog
from accel_train.visible import visible
from tests.fuzzing import FUZZ

EVIL = "\x1b]0;title\x07\x1b[2J\x9b31m\x08\r\x7f \u202egnp.exe"


@FUZZ
@given(st.text())
def test_only_plain_characters_are_left(text: str) -> None:
    shown = visible(text)
    assert all(character in "\n\t" or (ord(character) >= 32 and not 127 <= ord(character) < 160) for character in shown)
    assert shown.encode().decode() == shown
    assert not set(shown) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
    assert visible(shown) == shown


def test_usual_text_stays() -> None:
    text = "train.csv:3: 词 é 🙂 [bold]a[/bold]\n\tC:\\x1b"
    assert visible(text) == text
    assert visible("a\x1b[31m\x85\u202e") == r"a\x1b[31m\x85\u202e"


def test_errors_on_the_terminal(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["plan", str(tmp_path / EVIL.replace("/", ""))]) == 2
    assert visible(EVIL) in capsys.readouterr().err


def test_bad_records() -> None:
    bad = BadRecords()
    bad.add(f"{EVIL}.csv:1", f"text is {EVIL}")
    assert bad.listed == [visible(f"{EVIL}.csv:1: text is {EVIL}")]


def test_the_log(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    log = RunLog(tmp_path, is_main=True, rank=0)
    log.say(f"said {EVIL}")
    log.warn(f"warned [link=http://evil]{EVIL}")
    log.note(f"noted {EVIL}")
    log.close()
    for text in (capsys.readouterr().out, (tmp_path / "run.log").read_text()):
        assert not set(text) & set(EVIL) - set(visible(EVIL))
        assert "[link=http://evil]" in text
    assert "noted" in (tmp_path / "run.log").read_text()
