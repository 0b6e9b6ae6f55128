"""The ledger: exact numbers, a chain that shows every change, and a past that a kill does not alter."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from accel_train.ledger import LEDGER_FILE, Ledger, StepTaken, read_ledger

LAUNCH = {"engine": "ddp", "world_size": 2}


def taken(step: int) -> StepTaken:
    losses = {"info_nce": torch.tensor(1 / (step + 2))}
    return StepTaken(step, np.arange(8 * step, 8 * step + 8), 8, losses, 0.1 * step)


def write(folder: Path, steps: range, *, rewind: int = -1, launch: dict[str, object] | None = None) -> Path:
    ledger = Ledger(folder, is_main=True)
    ledger.rewind(rewind)
    ledger.launched(max(rewind, 0), launch or LAUNCH)
    for step in steps:
        ledger.took(taken(step))
    ledger.sync()
    ledger.close()
    return folder / LEDGER_FILE


def test_numbers_come_back_to_the_last_bit(tmp_path: Path) -> None:
    content = read_ledger(write(tmp_path, range(1, 6)))
    assert content.complaint is None
    assert list(content.steps()) == [1, 2, 3, 4, 5]
    line = content.steps()[3]
    assert torch.tensor(float.fromhex(line["losses"]["info_nce"])) == torch.tensor(1 / 5)
    assert float.fromhex(line["grad_norm"]) == 0.1 * 3
    assert content.launch_of(1) == LAUNCH


def test_samples_are_told_apart_by_their_order(tmp_path: Path) -> None:
    first, second = taken(1), taken(1)
    second.rows[[0, 1]] = second.rows[[1, 0]]
    assert first.line()["samples"] != second.line()["samples"]


def test_a_killed_run_leaves_the_ledger_of_one_that_was_not(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    whole = write(tmp_path / "whole", range(1, 9))
    killed = write(tmp_path / "killed", range(1, 7))
    killed.write_bytes(killed.read_bytes()[:-20])  # in the middle of a line
    write(tmp_path / "killed", range(5, 9), rewind=4)
    assert killed.read_bytes() == whole.read_bytes()


def test_another_launch_is_noted(tmp_path: Path) -> None:
    write(tmp_path, range(1, 4))
    other = {"engine": "zero2", "world_size": 1}
    content = read_ledger(write(tmp_path, range(4, 6), rewind=3, launch=other))
    assert content.complaint is None
    assert [content.launch_of(step) for step in (3, 4)] == [LAUNCH, other]


def changed(lines: list[str]) -> list[str]:
    line = json.loads(lines[2])
    line["grad_norm"] = (0.5).hex()
    return [*lines[:2], json.dumps(line), *lines[3:]]


@pytest.mark.parametrize(
    "tamper",
    [
        changed,
        lambda lines: [*lines[:2], *lines[3:]],
        lambda lines: [*lines[:3], lines[2], *lines[3:]],
        lambda lines: [*lines[:2], lines[3], lines[2], *lines[4:]],
        lambda lines: lines[2:],
        lambda lines: [*lines[:2], "nothing", *lines[3:]],
    ],
    ids=["changed", "left out", "twice", "swapped", "beginning lost", "no line"],
)
def test_a_changed_past_is_seen(tmp_path: Path, tamper: object) -> None:
    path = write(tmp_path, range(1, 6))
    assert callable(tamper)
    path.write_text("\n".join(tamper(path.read_text().splitlines())) + "\n")
    complaint = read_ledger(path).complaint
    assert complaint is not None
    assert "line" in complaint


def test_a_later_step_is_no_matter_of_the_past(tmp_path: Path) -> None:
    path = write(tmp_path, range(1, 6))
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:4], lines[5]]) + "\n")
    assert read_ledger(path).complaint is not None
    ledger = Ledger(tmp_path, is_main=True)
    assert ledger.rewind(3) is None
    ledger.close()


def test_a_line_that_was_lost_is_said_before_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(tmp_path, is_main=True)
    ledger.rewind(-1)
    monkeypatch.setattr(ledger._file, "flush", lambda: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    ledger.took(taken(1))
    with pytest.raises(OSError, match="No space"):
        ledger.sync()
    ledger.close()


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, is_main=False)
    assert ledger.rewind(-1) is None
    ledger.launched(0, LAUNCH)
    ledger.took(taken(1))
    ledger.sync()
    assert not list(tmp_path.iterdir())


def test_steps_that_were_taken_again_count_once(tmp_path: Path) -> None:
    """A run that goes back to a checkpoint appends; a kill after that finds its way too."""
    path = write(tmp_path, range(1, 7))
    again = [StepTaken(step, np.arange(3), 3, {"info_nce": torch.tensor(0.5)}, 1.0) for step in (4, 5, 6, 7)]
    ledger = Ledger(tmp_path, is_main=True)
    ledger.rewind(6)
    for one in again:
        ledger.took(one)
    ledger.close()
    assert read_ledger(path).steps()[5]["losses"] == {"info_nce": (0.5).hex()}
    assert Ledger(tmp_path, is_main=False).rewind(5) is None
    resumed = Ledger(tmp_path, is_main=True)
    assert resumed.rewind(5) is None
    resumed.close()
    content = read_ledger(path)
    assert [line["step"] for line in content.lines] == [0, 1, 2, 3, 4, 5, 6, 4, 5]
    assert content.steps()[5]["grad_norm"] == (1.0).hex()


def test_a_resume_checks_the_end_of_a_long_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accel_train.ledger.CHECKED_LINES", 4)
    path = write(tmp_path, range(1, 12))
    whole = path.read_bytes()
    lines = whole.decode().splitlines()

    def resumed(tampered: int | None) -> tuple[str | None, bytes]:
        texts = [line.replace("0x", "0X") if number == tampered else line for number, line in enumerate(lines)]
        path.write_text("\n".join(texts) + "\n")
        ledger = Ledger(tmp_path, is_main=True)
        complaint = ledger.rewind(9)
        ledger.launched(9, LAUNCH)  # stands further up than what is checked, and is known all the same
        for step in (10, 11):
            ledger.took(taken(step))
        ledger.close()
        return complaint, path.read_bytes()

    assert resumed(None) == (None, whole)
    assert resumed(3)[0] is None, "before the lines that a resume checks"
    complaint = read_ledger(path).complaint
    assert complaint is not None and "line 4 " in complaint
    complaint = resumed(8)[0]
    assert complaint is not None and "line 9 " in complaint
