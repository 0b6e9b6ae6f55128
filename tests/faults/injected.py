"""Brings the faults of a chain about, and holds the run after each of them against one without faults."""

import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from accel_train.checkpoint.files import DamagedCheckpoint, check_files, read_state
from accel_train.checkpoint.folders import all_folders
from accel_train.config.faults import Fault
from tests.faults.chains import Chain, Start

KILLED, FAILED, REFUSED, REQUEUE = -signal.SIGKILL, 1, 2, 75
LOSS_TOLERANCE = 1e-5
SPLIT = "data.micro_batch_size=4"


def train_through(chain: Chain, run: Any, reference: Any) -> None:
    """Brings the faults about one after the other, checks the run after each of them, and lets it end."""
    newest, record = 0, run.folder / "samples.txt"
    expected = samples(reference.folder / "samples.txt")
    for start in chain.starts:
        newest = bring_about(run, start, chain, newest, record_samples=record)
        assert newest_whole(run) == newest, start.inject
        assert_so_far_as(run, reference, exactly=chain.exactly)
        assert samples(record) <= expected, start.inject
    last = chain.starts[-1]
    arguments = [f"engine={last.engine}", *(["--inject", chain.always] if chain.always else [])]
    output = run.finish(*arguments, ranks=last.ranks, record_samples=record)
    assert re.search(f"at step {newest} of {chain.end}|{newest} of {chain.end} steps. Nothing to do", output), output
    assert samples(record) == expected
    assert_ends_as(run, reference, exactly=chain.exactly)


def bring_about(run: Any, start: Start, chain: Chain, resumed_from: int, **options: Any) -> int:
    """Starts a run with a fault, and checks how it ends. Returns the step of the newest whole checkpoint."""
    texts = [start.inject, *([chain.always] if chain.always else [])]
    running = run.start(f"engine={start.engine}", "--inject", ",".join(texts), ranks=start.ranks, **options)
    codes = running.wait()
    fault, output = start.fault, running.output
    assert f"--inject: {start.inject} fires" in output, f"{codes}\n{output}"
    assert "Traceback" not in output, output
    in_tidying_up = fault.moment in ("link", "prune") and fault.step == resumed_from
    if resumed_from and not in_tidying_up:
        assert f"at step {resumed_from} of {chain.end}" in output
    if fault.kind == "signal":
        assert codes == [REQUEUE] * start.ranks, f"{codes}\n{output}"
    elif fault.kind in ("disk-full", "kill-worker", "hang"):
        assert codes == [FAILED] * start.ranks, f"{codes}\n{output}"
    else:  # where all ranks are killed, one may be gone before another is there
        victims = range(start.ranks) if fault.rank is None else [fault.rank]
        assert KILLED in [codes[rank] for rank in victims], f"{codes}\n{output}"
        assert set(codes) <= {KILLED, FAILED}, f"{codes}\n{output}"
    return newest_after(fault, chain, resumed_from)


def newest_after(fault: Fault, chain: Chain, resumed_from: int) -> int:
    """The step of the newest whole checkpoint that a fault must leave, in a start that goes on from a step."""
    assert fault.step is not None
    taken = fault.step - 1 if fault.moment in ("step", "update") else fault.step
    if fault.kind == "signal":
        return taken
    is_lost = fault.moment in ("evaluation", "write", "publish") or fault.kind == "corrupt-checkpoint"
    saved = taken - 1 if is_lost else taken
    return max(saved if saved == chain.end else saved // chain.save_every * chain.save_every, resumed_from)


def newest_whole(run: Any) -> int:
    """The step of the newest checkpoint whose files are what its record says; 0 if there is none."""
    for folder in all_folders(run.checkpoints):
        try:
            check_files(folder, read_state(folder))
        except DamagedCheckpoint:
            continue
        return int(folder.name[5:])
    return 0


def assert_so_far_as(run: Any, reference: Any, *, exactly: bool) -> None:
    """The metrics that are there are those of the run without faults."""
    found = run.metrics() if (run.run_dir / "metrics.jsonl").exists() else []
    expected = reference.metrics()
    assert len(found) <= len(expected)
    for ours, theirs in zip(found, expected, strict=False):
        assert (ours["step"], ours["split"]) == (theirs["step"], theirs["split"])
        if exactly:
            assert ours == theirs
        else:
            if "loss" in ours:
                assert ours["loss"] == pytest.approx(theirs["loss"], abs=LOSS_TOLERANCE, rel=0)
            assert without_split(ours) == pytest.approx(without_split(theirs), rel=1e-3, abs=1e-4)


def without_split(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "split"}


def samples(*files: Path) -> set[str]:
    """A line for each micro-batch that was trained on: step, position, sample ids."""
    return {line for file in files if file.exists() for line in file.read_text().splitlines()}


def assert_ends_as(run: Any, reference: Any, *, exactly: bool) -> None:
    """After the last start: all metrics, and on one engine the weights to the bit; nothing is left behind."""
    assert len(run.metrics()) == len(reference.metrics())
    assert_so_far_as(run, reference, exactly=exactly)
    names = {path.name for path in run.checkpoints.iterdir() if not path.name.endswith(".damaged")}
    assert names == {path.name for path in reference.checkpoints.iterdir()}, "nothing is left behind"
    ours, theirs = run.whole_state(), reference.whole_state()
    assert ours.keys() == theirs.keys()
    if exactly:
        assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    for name in ("step", "samples", "unreadable", "skipped", "rollbacks"):
        assert run.state()[name] == reference.state()[name], name
