"""Faults that are brought about: where, how often, and what is left behind of them."""

import errno
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from accel_train.config.faults import read_faults
from accel_train.data.dataset import UnreadableSample
from accel_train.inject import INJECTED_FILE, DatasetWithHoles, Faults, fired_faults
from accel_train.run_log import RunLog


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, rows: Tensor) -> dict[str, Tensor]:
        return {"features": self.layer(rows), "labels": torch.zeros(2, dtype=torch.int64)}


class Rows:
    fingerprint = "f"

    def __len__(self) -> int:
        return 3

    def read(self, row: int, epoch: int | None) -> dict[str, Tensor]:
        return {"row": torch.tensor(row)}


@pytest.fixture
def log(tmp_path: Path):
    log = RunLog(tmp_path, is_main=True, rank=0)
    yield log
    log.close()


def faults_of(text: str, log: RunLog, rank: int = 0) -> Faults:
    return Faults(read_faults(text), rank=rank, log=log, fired=fired_faults(log.run_dir))


def test_without_faults_nothing_is_said_or_done(log: RunLog, capfd: pytest.CaptureFixture[str]) -> None:
    faults = Faults((), rank=0, log=log)
    faults.at("step", 1)
    faults.say_what_is_left()
    assert not faults.waiting
    assert capfd.readouterr() == ("", "")
    assert list(log.run_dir.glob(INJECTED_FILE)) == []
    rows = Rows()
    assert faults.on_rows_of(rows) is rows


def test_a_full_disk_at_its_save_alone_and_once(log: RunLog, capfd: pytest.CaptureFixture[str]) -> None:
    part = log.run_dir / "rank_00000.safetensors"
    part.write_bytes(b"x" * 10)
    faults = faults_of("disk-full@6", log)
    faults.at("write", 5, part)
    faults.at("publish", 6, part)
    with pytest.raises(OSError, match="No space left") as raised:
        faults.at("write", 6, part)
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, str(part))
    assert part.read_bytes() == b"x" * 5
    said = capfd.readouterr().err
    assert "warning: --inject: this run is made to fail; faults to come: disk-full@6; fired already: none" in said
    assert "warning: --inject: disk-full@6 fires on rank 0" in said
    assert "disk-full@6 fires" in (log.run_dir / "run.log").read_text()
    faults.at("write", 6, part)
    again = faults_of("disk-full@6", log)
    again.at("write", 6, part)
    assert "faults to come: none; fired already: disk-full@6" in capfd.readouterr().err


def test_other_ranks_are_spared_and_know_of_it_at_the_next_start(log: RunLog) -> None:
    part = log.run_dir / "part"
    part.write_bytes(b"xx")
    faults_of("disk-full:rank=1@6", log, rank=0).at("write", 6, part)
    with pytest.raises(OSError, match="No space"):
        faults_of("disk-full:rank=1@6", log, rank=1).at("write", 6, part)
    assert not faults_of("disk-full:rank=1@6", log, rank=0).waiting


def test_a_torn_line_of_the_record_is_no_fault_that_fired(tmp_path: Path) -> None:
    assert fired_faults(tmp_path) == frozenset()
    line = json.dumps({"fault": "kill:rank=1@3", "rank": 1})
    (tmp_path / INJECTED_FILE).write_text(f"{line}\n[]\n{line[:20]}")
    assert fired_faults(tmp_path) == {"kill:rank=1@3"}


@pytest.mark.parametrize("text", ["kill:rank=0@3", "torn-checkpoint@3", "corrupt-checkpoint@3"])
def test_a_kill_is_remembered_before_it_comes(text: str, tmp_path: Path) -> None:
    script = f"""
from pathlib import Path
from accel_train.config.faults import read_faults
from accel_train.inject import Faults
from accel_train.run_log import RunLog
folder = Path({str(tmp_path)!r})
faults = Faults(read_faults({text!r}), rank=0, log=RunLog(folder, is_main=True, rank=0))
part = folder / "rank_00000.safetensors"
part.write_bytes(b"abcd")
for moment in ("step", "write", "prune"):
    faults.at(moment, 3, folder if moment == "prune" else part)
print("still here")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "")
    assert fired_faults(tmp_path) == {text}
    left = {"kill:rank=0@3": b"abcd", "torn-checkpoint@3": b"ab", "corrupt-checkpoint@3": b"abc\x9b"}
    assert (tmp_path / "rank_00000.safetensors").read_bytes() == left[text]


def test_nan_for_one_step_on_one_rank_and_not_in_an_evaluation(log: RunLog) -> None:
    model, rows = Model(), torch.ones(2, 2)

    def is_nan() -> bool:
        outputs = model(rows)
        assert outputs["labels"].tolist() == [0, 0]
        return bool(outputs["features"].isnan().all())

    faults, other = faults_of("nan:rank=0@2", log), faults_of("nan:rank=0@2", log, rank=1)
    faults.before_step(1, model)
    assert not is_nan()
    other.before_step(2, model)
    assert not is_nan()
    faults.before_step(2, model)
    assert is_nan()
    model(rows)["features"].sum().backward()
    assert model.layer.weight.grad is not None and model.layer.weight.grad.isnan().all()
    model.eval()
    assert not is_nan()
    model.train()
    faults.before_step(3, model)
    assert not is_nan()
    faults.before_step(2, model)  # after a rollback
    assert not is_nan()
    again = faults_of("nan:rank=0@2", log)
    again.before_step(2, model)
    assert is_nan(), "another process meets it again"


def test_a_slow_rank_sleeps_before_every_step(log: RunLog, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    for rank in (0, 1):
        faults = faults_of("slow:rank=1:0.5s", log, rank)
        faults.before_step(1, Model())
        faults.before_step(2, Model())
    assert slept == [0.5, 0.5]


def test_a_signal_comes_in_its_step(log: RunLog) -> None:
    received: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: received.append(number))
    try:
        faults = faults_of("signal:USR1:rank=0@2", log)
        for step in (1, 2, 2, 3):
            faults.before_step(step, Model())
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert received == [signal.SIGUSR1]


def test_a_row_that_can_not_be_read(log: RunLog) -> None:
    dataset = faults_of("unreadable-sample:1", log).on_rows_of(Rows())
    assert isinstance(dataset, DatasetWithHoles)
    assert (len(dataset), dataset.fingerprint) == (3, "f")
    assert dataset.read(2, None) == {"row": torch.tensor(2)}
    with pytest.raises(UnreadableSample, match="row 1: --inject unreadable-sample:1"):
        dataset.read(1, 0)


def test_what_never_fired_is_said_at_the_end(log: RunLog, capfd: pytest.CaptureFixture[str]) -> None:
    text = "kill:rank=0:at=write@5,slow:rank=0:1s"
    faults_of(text, log, rank=1).say_what_is_left()
    assert "never fired" not in capfd.readouterr().err
    faults_of(text, log).say_what_is_left()
    assert "--inject: never fired, since the run never came there: kill:rank=0:at=write@5\n" in capfd.readouterr().err
