"""scripts/compare_bench.py: names what got slower, and exits 1 for that alone."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from accel_train.tools.bench.figures import Figure, write_figures

SCRIPT = Path(__file__).parents[1] / "scripts" / "compare_bench.py"
LOOP = Figure("loop/one_process", 0.99, 0.005, 0.98, how="")
CACHED = Figure("step/cached", 1.2, 0.02, 1.3, how="", better="lower")


def compared(folder: Path, new: list[Figure]) -> subprocess.CompletedProcess[str]:
    write_figures(folder / "old.json", [LOOP, CACHED])
    write_figures(folder / "new.json", new)
    command = [sys.executable, str(SCRIPT), str(folder / "old.json"), str(folder / "new.json")]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("new", "code", "said"),
    [
        ([LOOP, replace(CACHED, value=1.22)], 0, "nothing got slower"),
        ([LOOP, replace(CACHED, value=1.4)], 1, "slower beyond noise: step/cached"),
        ([replace(LOOP, value=0.95), replace(CACHED, value=1.0)], 1, "slower beyond noise: loop/one_process"),
        ([LOOP], 0, "gone"),
    ],
    ids=["noise", "lower_is_better", "higher_is_better", "gone"],
)
def test_compare(new: list[Figure], code: int, said: str, tmp_path: Path) -> None:
    done = compared(tmp_path, new)
    assert done.returncode == code, done.stderr
    assert said in done.stdout


def test_a_file_that_is_none(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), str(tmp_path / "none.json"), str(tmp_path / "none.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "can't be read" in done.stderr
