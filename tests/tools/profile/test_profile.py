"""`accel-train profile`, as it is called: one rank and two."""

import gzip
import json
import signal
from pathlib import Path

import pytest
import torch
from torch import profiler

from accel_train.errors import UserError
from accel_train.tools.profile.command import place_of_trace, write_trace
from tests.distributed.ranks import run_ranks
from tests.tools.profile.test_recording import TINY

SMALL = [
    *TINY,
    "data.micro_batch_size=8",
    "--steps=2",
    "--warmup=1",
    "--no-checkpoint",
]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_two_ranks_leave_two_traces(engine: str, tmp_path: Path) -> None:
    arguments = ["profile", "configs/quickstart.yaml", f"run_dir={tmp_path}/run", f"engine={engine}", *SMALL, "--json"]
    ranks = run_ranks(2, "-m", "accel_train", *arguments, TMPDIR=str(tmp_path))
    assert [rank.exit_code for rank in ranks] == [0, 0], ranks[0].output
    found = json.loads(ranks[0].output[ranks[0].output.index("[\n") :])
    assert [one["rank"] for one in found] == [0, 1]
    for one in found:
        assert "reduce" in {row["name"] for row in one["phases"]}
        assert 0 < one["communication_exposed"] <= one["communication"] < 1
        events = json.loads(gzip.decompress(Path(one["trace"]).read_bytes()))["traceEvents"]
        assert {"accel_train: forward", "accel_train: backward"} <= {event.get("name") for event in events}
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"profile"}, "nothing else is written into run_dir"
    assert not list(tmp_path.glob("accel_train_*")), "the scratch folder is gone"


def test_place_of_a_trace(tmp_path: Path) -> None:
    assert place_of_trace(tmp_path / "a.json", 0, 1) == tmp_path / "a.json"
    assert place_of_trace(tmp_path / "b" / "a.json.gz", 1, 2) == tmp_path / "b" / "a_rank_00001.json.gz"
    with pytest.raises(UserError, match=r"must end in \.json or \.json\.gz"):
        place_of_trace(tmp_path / "a.txt", 0, 1)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"can't be written"):
        place_of_trace(tmp_path / "file" / "a.json", 0, 1)


@pytest.mark.parametrize("name", ["trace.json", "trace.json.gz"])
def test_a_trace_is_whole_after_ctrl_c(name: str, tmp_path: Path) -> None:
    with profiler.profile(activities=[profiler.ProfilerActivity.CPU], acc_events=True) as found:
        torch.ones(2).sum()
    path = tmp_path / name
    export = found.export_chrome_trace

    def interrupted(target: str) -> None:
        signal.raise_signal(signal.SIGINT)
        export(target)

    found.export_chrome_trace = interrupted  # type: ignore[assignment, method-assign]
    with pytest.raises(KeyboardInterrupt):
        write_trace(found, path)
    content = path.read_bytes()
    assert json.loads(gzip.decompress(content) if name.endswith(".gz") else content)["traceEvents"]
