from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from accel_train import json_text
from accel_train.json_text import lines_from_end


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.lists(st.sampled_from([b"\n", b"a", b"bc\n", b"\r", b"defghij"]), max_size=20).map(b"".join))
@pytest.mark.parametrize("block", [1, 3, 100])
def test_lines_from_the_end_are_those_from_the_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, content: bytes
) -> None:
    monkeypatch.setattr(json_text, "BLOCK", block)
    path = tmp_path / "file"
    for end in (None, len(content) // 2):
        path.write_bytes(content)
        wanted, place = [], 0
        for line in content[:end].split(b"\n"):
            whole = line + b"\n" if place + len(line) < len(content[:end]) else line
            wanted += [(place, whole)] if whole else []
            place += len(whole)
        assert list(lines_from_end(path, end)) == wanted[::-1]
