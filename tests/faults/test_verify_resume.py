"""`verify --resume` on runs of real ranks: it believes a run that can be repeated, and names the first step that can't."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from accel_train.ledger import LEDGER_FILE, Ledger, read_ledger
from tests.faults.built_in import outcomes
from tests.faults.conftest import Experiment

NeverKilled = Callable[[str, int], Experiment]
BY_LINE = ["run", "--resume"]


@pytest.fixture
def finished(never_killed: NeverKilled, tmp_path: Path) -> Experiment:
    """DDP on two ranks: 16 steps, checkpoints of steps 15 and 16, and one where the score was best."""
    return never_killed("ddp", 2).copy(tmp_path / "finished")


def test_the_same_launch_repeats_a_run_to_the_last_bit(finished: Experiment) -> None:
    files = {path: path.read_bytes() for path in finished.run_dir.rglob("*") if path.is_file()}
    faults = ("", "other_order", "other_pixels")
    ranks = finished.start(*BY_LINE, command="verify", ranks=2, built_in=faults)
    assert ranks.wait(200) == [0, 0], ranks.output
    found = outcomes(finished.folder, 2)
    last, before = sorted(finished.steps_on_disk())[-1:-3:-1]
    assert found["nothing"][0] == [0, 0]
    assert "numbers must be equal to the last bit" in found["nothing"][1]
    assert f"compared with the checkpoint of step {last}" in found["nothing"][1]
    assert found["other_order"][0] == [1, 1]
    assert f"step {before + 1}: other samples than then" in found["other_order"][1]
    assert found["other_pixels"][0] == [1, 1]
    assert f"step {before + 1}: loss info_nce is " in found["other_pixels"][1]
    assert {path: path.read_bytes() for path in finished.run_dir.rglob("*") if path.is_file()} == files


def test_another_launch_repeats_it_within_rounding(finished: Experiment) -> None:
    """Dropout is fast: the number of ranks may change, the micro-batch size may not."""
    said = finished.finish(*BY_LINE, "engine=zero1", "--json", command="verify")
    found = json.loads(said[said.index("{") : said.rindex("}") + 1])
    assert found["passed"] and not found["exact"]
    assert found["other_launch"] == ["engine", "world_size"]
    assert 0 < found["largest_difference"] < 1e-4


def test_a_ledger_that_was_changed_is_not_believed(finished: Experiment) -> None:
    path = finished.run_dir / LEDGER_FILE
    lines = path.read_text().splitlines()
    changed = json.loads(lines[-1])
    changed["grad_norm"] = (1.01 * float.fromhex(changed["grad_norm"])).hex()
    path.write_text("\n".join([*lines[:-1], json.dumps(changed)]) + "\n")
    assert f"line {len(lines)} does not continue the chain" in finished.fail(*BY_LINE, command="verify", code=1)


def test_a_forged_past_is_found_by_computing_it(finished: Experiment) -> None:
    """A chain that was made anew holds; what it says was never computed."""
    path = finished.run_dir / LEDGER_FILE
    content = read_ledger(path)
    last = content.lines[-1]["step"]
    path.unlink()
    forger = Ledger(finished.run_dir, is_main=True)
    forger.rewind(-1)
    for line in content.lines:
        del line["chain"]
        if line["step"] == last:
            line["losses"] = {"info_nce": (0.125).hex()}
        forger._write(line)
    forger.close()
    said = finished.fail(*BY_LINE, "--steps", "1", command="verify", ranks=2, code=1)
    assert f"step {last}: loss info_nce is" in said
    assert "then 0.125" in said


def test_what_can_not_be_replayed_is_said(finished: Experiment) -> None:
    assert "no checkpoint" in finished.fail(*BY_LINE, "--steps", "500", command="verify", code=2)
    (finished.run_dir / LEDGER_FILE).unlink()
    assert "has no line for step" in finished.fail(*BY_LINE, command="verify", code=2)
