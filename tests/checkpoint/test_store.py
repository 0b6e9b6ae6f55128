"""Saving and resuming over any number of ranks, and what is kept."""

import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from accel_train.checkpoint.files import Reader
from accel_train.checkpoint.load import load_weights
from accel_train.checkpoint.state import TrainState
from tests.checkpoint.stand_in import ABOUT, Layout, Run, saved_run, some_tensors


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """Any division of the tensors over some ranks."""
    layout: Layout = [[] for _ in range(draw(st.integers(1, 3)))]
    for name, tensor in some_tensors().items():
        inner = st.integers(1, max(1, tensor.numel() - 1))
        cuts = sorted(draw(st.sets(inner, max_size=3))) if tensor.numel() > 1 else []
        for start, stop in zip([0, *cuts], [*cuts, tensor.numel()], strict=True):
            layout[draw(st.integers(0, len(layout) - 1))].append((name, start, stop))
    return layout


@settings(max_examples=25, deadline=None)
@given(written=st.none() | layouts(), read=st.none() | layouts())
def test_any_division_is_read_under_any_other(written: Layout | None, read: Layout | None) -> None:
    with TemporaryDirectory() as folder:
        before = Run(Path(folder), some_tensors(), written, ranks=len(written or "ab"))
        before.engines[0].module(torch.randn(8, 3) + 5)
        state = {"samples": 70, "loss_scale": 0.5, "first_scores": {"recall": 0.1}, "best_score": 1 / 3, "best_step": 5}
        before.save(10, **state)
        zeros = {name: torch.zeros_like(tensor) for name, tensor in some_tensors().items()}
        after = Run(Path(folder), zeros, read, ranks=len(read or "abc"))
        assert after.resume() == TrainState(step=10, **state)
        for engine in after.engines:
            assert engine.loaded_updates == [11]
            assert torch.equal(engine.module.running_mean, before.engines[0].module.running_mean)
            for name, start, stop in engine.mine:
                expected = some_tensors()[name].view(-1)[start:stop]
                assert torch.equal(engine.storage[name]["weight"].view(-1)[start:stop], expected)
                assert torch.equal(engine.storage[name]["exp_avg"].view(-1)[start:stop], expected + 1)
        whole = load_weights(before.root / "latest")
        assert all(torch.equal(whole[name], tensor) for name, tensor in some_tensors().items())


def test_what_every_rank_holds_is_written_once_in_equal_parts(tmp_path: Path) -> None:
    tensors = {f"t{index}": torch.ones(100 + index) for index in range(40)}
    run = Run(tmp_path, tensors, ranks=4)
    run.save(1)
    pieces = [piece for entry in Reader(run.root / "latest").index["weight"].values() for piece in entry["pieces"]]
    assert len(pieces) == 40
    per_file = {file: sum(length for name, _, length in pieces if name == file) for file, _, _ in pieces}
    assert len(per_file) == 4
    assert max(per_file.values()) - min(per_file.values()) < 200


def test_state_is_readable_and_lists_every_other_file(tmp_path: Path) -> None:
    run = Run(tmp_path, some_tensors(), ranks=2)
    run.save(3, best_score=0.5, best_step=3)
    folder = run.root / "step_00000003"
    state = json.loads((folder / "state.json").read_text())
    assert (state["step"], state["best_score"], state["world_size"]) == (3, 0.5, 2)
    assert state["about"] == ABOUT["about"]
    assert {"torch", "accel_train"} <= set(state["versions"])
    listed = {record["name"]: record["num_bytes"] for record in state["files"]}
    assert listed == {file.name: file.stat().st_size for file in folder.iterdir() if file.name != "state.json"}


def test_the_last_ones_and_the_best_are_kept(tmp_path: Path) -> None:
    run = Run(tmp_path, some_tensors(), keep_last=2)
    for step, best in [(1, None), (2, 2), (3, 2), (4, 2), (5, 2)]:
        run.save(step, best_step=best)
    assert run.names() == ["best", "latest", "step_00000002", "step_00000004", "step_00000005"]
    assert os.readlink(run.root / "best") == "step_00000002"
    assert os.readlink(run.root / "latest") == "step_00000005"
    run.save(6, best_step=6)
    assert run.names() == ["best", "latest", "step_00000005", "step_00000006"]
    assert (run.root / "best").resolve() == (run.root / "latest").resolve() == run.root / "step_00000006"


def test_a_step_is_saved_once(tmp_path: Path) -> None:
    run = saved_run(tmp_path, [4])
    before = {file: file.stat().st_mtime_ns for file in (run.root / "step_00000004").iterdir()}
    assert run.save(4) == [run.root / "step_00000004"]
    assert {file: file.stat().st_mtime_ns for file in (run.root / "step_00000004").iterdir()} == before


def test_an_empty_run_has_nothing_to_resume(tmp_path: Path) -> None:
    run = Run(tmp_path, some_tensors(), ranks=2)
    assert run.resume() is None
    (run.root / ".step_00000003.partial").mkdir(parents=True)
    assert run.resume() is None
