"""A pass over rows says how far it is where nobody watches a terminal, and at the speed of this start alone."""

import pytest

from accel_train.tools import row_progress
from accel_train.tools.row_progress import RowProgress


@pytest.mark.parametrize("shown", [True, False])
def test_plain_lines_go_to_the_errors(
    shown: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(row_progress.time, "monotonic", lambda: clock[0])
    with RowProgress("images", 1000, done=400, shown=shown) as progress:
        for _ in range(4):
            clock[0] += 20
            progress.advance(100)
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = ["images: 600 of 1000, 5.0 rows/s", "images: 800 of 1000, 5.0 rows/s"]
    assert captured.err.splitlines() == (lines if shown else [])
