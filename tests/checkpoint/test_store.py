"""Saving and resuming over any number of ranks, and what a crash, a full disk or damage at any moment leaves behind.

Ranks are threads here, each with a stand-in for the engine; tests/faults does it with processes and real engines.
"""

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import accel_train.checkpoint.store
from accel_train.checkpoint.files import DamagedCheckpoint, FileRecord, Reader, check_files, read_state
from accel_train.checkpoint.state import TrainState, state_of
from accel_train.checkpoint.store import Checkpoints, all_folders, load_weights
from accel_train.engine.engine import Engine
from accel_train.engine.shards import Shard
from accel_train.errors import CheckFailed, UserError
from accel_train.optim.param_groups import GroupPlan, ParamGroup

STATE_NAMES = ("exp_avg",)
ABOUT = {"about": {"config": {"seed": 0}, "dataset_fingerprint": "f"}}
Layout = list[list[tuple[str, int, int]]]
"""For each rank, the pieces (name, start, stop) that it owns."""


class Crash(BaseException):
    """The power goes off."""


class Ranks:
    """What threads that play ranks have in common."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self._barrier = threading.Barrier(world_size, timeout=20)
        self._things: list[Any] = [None] * world_size

    def gather(self, rank: int, thing: Any) -> list[Any]:
        self._things[rank] = thing
        self._barrier.wait()
        everyone = list(self._things)
        self._barrier.wait()
        return everyone

    def run(self, action: Callable[[int], Any]) -> list[Any]:
        """The action's result on every rank, or the exception that it ended with."""

        def outcome(rank: int) -> Any:
            try:
                return action(rank)
            except (UserError, CheckFailed, Crash) as error:
                return error
            except Exception:
                self._barrier.abort()  # so that the other threads don't wait
                raise

        with ThreadPoolExecutor(self.world_size) as pool:
            return list(pool.map(outcome, range(self.world_size)))


class StandInEngine:
    """What Checkpoints asks of an engine."""

    def __init__(self, ranks: Ranks, rank: int, tensors: dict[str, Tensor], layout: Layout | None) -> None:
        self.ranks, self.rank, self.world_size, self.is_main = ranks, rank, ranks.world_size, rank == 0
        self.launch = SimpleNamespace(engine="stand-in")
        self.storage = {name: {"weight": t.clone(), "exp_avg": t.clone() + 1} for name, t in tensors.items()}
        whole = [(name, 0, tensor.numel()) for name, tensor in tensors.items()]
        self.mine = whole if layout is None else layout[rank]
        self.replicated = layout is None
        self.loaded_updates: list[int] = []
        self.module = nn.BatchNorm1d(3, affine=False)

    def shards(self, state_names: tuple[str, ...]) -> Iterator[Shard]:
        for name, start, stop in self.mine:
            held = {kind: tensor.view(-1)[start:stop] for kind, tensor in self.storage[name].items()}
            shape = tuple(self.storage[name]["weight"].shape)
            state = {kind: held[kind] for kind in state_names}
            yield Shard(name, shape, start, held["weight"], state, replicated=self.replicated)

    def gather_objects(self, thing: Any) -> list[Any]:
        return self.ranks.gather(self.rank, thing)

    together = Engine.together

    def bare_model(self) -> nn.Module:
        return self.module

    def share_buffers(self) -> None:
        pass

    def finish_loading(self, updates: list[int]) -> None:
        self.loaded_updates = updates


class StandInLog:
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, message: str) -> None:
        self.said.append(message)

    def sync(self) -> None:
        pass


class Run:
    """One run_dir seen by some ranks."""

    def __init__(
        self,
        run_dir: Path,
        tensors: dict[str, Tensor],
        layout: Layout | None = None,
        ranks: int = 1,
        keep_last: int = 2,
    ) -> None:
        self.ranks = Ranks(ranks)
        self.engines = [StandInEngine(self.ranks, rank, tensors, layout) for rank in range(ranks)]
        self.logs = [StandInLog() for _ in range(ranks)]
        self.plan = plan_of(tensors)
        self.root = run_dir / "checkpoints"
        self.checkpoints = [
            Checkpoints(run_dir, engine, log, keep_last=keep_last, state_names=STATE_NAMES)  # type: ignore[arg-type]
            for engine, log in zip(self.engines, self.logs, strict=True)
        ]

    def save(self, step: int, **state: Any) -> list[Any]:
        return self.ranks.run(lambda rank: self.checkpoints[rank].save(TrainState(step=step, **state), ABOUT))

    def resume(self) -> TrainState | None:
        """What a new start of the command does. Raises what a rank raised."""

        def start(rank: int) -> TrainState | None:
            found = self.checkpoints[rank].newest_valid()
            if found is None:
                return None
            state = state_of(found[1])
            self.checkpoints[rank].load(found[0], state, self.plan)
            return state

        outcomes = self.ranks.run(start)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        assert all(outcome == outcomes[0] for outcome in outcomes)
        return outcomes[0]  # type: ignore[no-any-return]

    def names(self) -> list[str]:
        return sorted(path.name for path in self.root.iterdir())


def plan_of(tensors: dict[str, Tensor], *, first_step: int = -1) -> GroupPlan:
    """One group of all tensors, whose optimizer state had seen an update before the run."""
    group = ParamGroup("all", "all", 0, 1, tuple(tensors), 0, 0.1, 0.0, None, first_step)
    return GroupPlan([group], [])


def some_tensors(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"embedding": (5, 3), "bias": (4,), "scale": (1,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def saved_run(folder: Path, steps: list[int], keep_last: int = 9, best_step: int | None = None) -> Run:
    run = Run(folder, some_tensors(), keep_last=keep_last)
    for step in steps:
        assert run.save(step, best_step=best_step) == [run.root / f"step_{step:08d}"]
    return run


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


# Damage


def test_a_damaged_newest_is_named_passed_over_and_set_aside(tmp_path: Path) -> None:
    saved_run(tmp_path, [2, 4, 6], best_step=6)
    root = tmp_path / "checkpoints"
    (root / "step_00000006" / "rank_00000.safetensors").unlink()
    (root / "step_00000004" / "index.json").write_text("{}")
    run = Run(tmp_path, some_tensors(), ranks=2)
    state = run.resume()
    assert state is not None
    assert state.step == 2
    assert run.logs[0].said[0].startswith("warning: checkpoint step_00000006 is damaged and passed over: ")
    assert "rank_00000.safetensors is missing" in run.logs[0].said[0]
    assert "index.json has 2 bytes instead of" in run.logs[0].said[1]
    assert "step_00000006.damaged" in run.names() and "step_00000006" not in run.names()
    assert os.readlink(run.root / "latest") == "step_00000002"
    run.save(4)
    run.save(6, best_step=6)
    assert [folder.name for folder in all_folders(root)] == ["step_00000006", "step_00000004"]
    check_files(root / "best", read_state(root / "best"))


def test_a_damaged_newest_never_costs_the_good_one(tmp_path: Path) -> None:
    saved_run(tmp_path, [2, 8], keep_last=9)
    (tmp_path / "checkpoints" / "step_00000008" / "index.json").unlink()
    run = Run(tmp_path, some_tensors(), keep_last=1)
    assert run.resume().step == 2  # type: ignore[union-attr]
    run.save(5)
    assert [folder.name for folder in all_folders(run.root)] == ["step_00000005"]
    assert Run(tmp_path, some_tensors()).resume().step == 5  # type: ignore[union-attr]


@pytest.mark.parametrize("ranks", [1, 2])
def test_if_all_are_damaged_every_rank_stops_and_nothing_is_touched(tmp_path: Path, ranks: int) -> None:
    saved_run(tmp_path, [2, 4])
    for folder in all_folders(tmp_path / "checkpoints"):
        (folder / "state.json").write_text('{"format": 1}')
    before = sorted(tmp_path.rglob("*"))
    run = Run(tmp_path, some_tensors(), ranks=ranks)
    outcomes = run.ranks.run(lambda rank: run.checkpoints[rank].newest_valid())
    assert all(isinstance(outcome, UserError) for outcome in outcomes), outcomes
    assert "none of the 2 checkpoints is whole" in str(outcomes[0])
    assert "state.json: not a checkpoint of format" in run.logs[0].said[0]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_disk_that_can_not_be_read_is_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = saved_run(tmp_path, [2, 4])

    original = accel_train.checkpoint.files.record_of

    def read(path: Path) -> FileRecord:
        if "step_00000004" in str(path):
            raise OSError(5, "Input/output error", str(path))
        return original(path)

    monkeypatch.setattr(accel_train.checkpoint.files, "record_of", read)
    assert run.resume().step == 2  # type: ignore[union-attr]
    assert "Input/output error" in run.logs[0].said[0]


def test_weights_of_a_damaged_checkpoint_are_refused(tmp_path: Path) -> None:
    run = saved_run(tmp_path, [2])
    (run.root / "latest" / "rank_00000.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match=r"can't be used: .*rank_00000\.safetensors has 10 bytes"):
        load_weights(run.root / "latest")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"embedding": torch.zeros(5, 4)}, r"embedding has shape \(5, 3\) there and \(5, 4\) in the model"),
        ({"embedding": torch.zeros(3, 5)}, r"embedding has shape \(5, 3\) there and \(3, 5\) in the model"),
        ({"extra.weight": torch.zeros(2)}, r"holds no weight of extra\.weight: .*use initialize_from"),
    ],
)
def test_another_model_is_refused_by_name_and_shape(tmp_path: Path, tensors: dict[str, Tensor], message: str) -> None:
    saved_run(tmp_path, [2])
    with pytest.raises(UserError, match=message):
        Run(tmp_path, tensors).resume()


def test_state_of_a_newly_trained_parameter_is_missing_by_name(tmp_path: Path) -> None:
    run = Run(tmp_path, some_tensors())
    run.checkpoints[0].state_names = ()  # as if everything had been frozen
    run.save(2)
    with pytest.raises(UserError, match="holds no exp_avg of embedding: the model or its frozen layers changed"):
        Run(tmp_path, some_tensors()).resume()


def test_parameters_that_begin_at_this_step_need_no_state(tmp_path: Path) -> None:
    run = Run(tmp_path, some_tensors())
    run.checkpoints[0].state_names = ()
    run.save(2)
    after = Run(tmp_path, some_tensors(1))
    after.plan = plan_of(some_tensors(), first_step=2)
    after.resume()
    (engine,) = after.engines
    assert engine.loaded_updates == [0]
    assert torch.equal(engine.storage["embedding"]["weight"], some_tensors()["embedding"])


# Failed writes


@pytest.mark.parametrize("failing_rank", [0, 1, 2])
@pytest.mark.parametrize("what", ["write_pieces", "sync", "write_json"])
def test_a_failed_write_stops_every_rank_with_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing_rank: int, what: str
) -> None:
    run = Run(tmp_path, some_tensors(), ranks=3)
    run.save(2)
    before = {file: file.read_bytes() for file in run.root.rglob("*") if file.is_file()}
    original = accel_train.checkpoint.files.__dict__[what]
    failing = {"write_json": 0}.get(what, failing_rank)

    def full(target: Path, *arguments: Any) -> Any:
        if what == "write_pieces" and arguments[0] != failing_rank:
            return original(target, *arguments)
        if what == "sync" and f"rank_{failing_rank:05d}" not in target.name:
            return original(target)
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(accel_train.checkpoint.files, what, full)
    outcomes = run.save(4)
    assert all(isinstance(outcome, CheckFailed) for outcome in outcomes), outcomes
    assert len({str(outcome) for outcome in outcomes}) == 1, "every rank says the same"
    message = str(outcomes[0])
    assert f"rank {failing} could not" in message and "No space left on device" in message
    assert "The last good checkpoint is step_00000002" in message
    assert {file: file.read_bytes() for file in run.root.rglob("*") if file.is_file()} == before
    assert run.names() == ["latest", "step_00000002"]


def test_a_log_that_could_not_be_written_stops_the_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, some_tensors(), ranks=2)

    def full() -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run.logs[0], "sync", full)
    outcomes = run.save(4)
    assert [type(outcome) for outcome in outcomes] == [CheckFailed, CheckFailed]
    assert "rank 0 could not write the log: No space left on device" in str(outcomes[1])
    assert "The last good checkpoint is none" in str(outcomes[1])


def test_a_disk_that_is_really_full(small_disk: Path) -> None:
    run = Run(small_disk, {"weight": torch.ones(40_000)}, ranks=2, keep_last=1)  # 320 kB a checkpoint
    run.save(1)
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * 400_000)
    outcomes = run.save(2)
    assert all(isinstance(outcome, CheckFailed) for outcome in outcomes), outcomes
    assert "No space left on device" in str(outcomes[0])
    assert run.names() == ["latest", "step_00000001"]
    assert run.resume().step == 1  # type: ignore[union-attr]
    filler.unlink()
    run.save(2)
    assert run.resume().step == 2  # type: ignore[union-attr]
    assert run.names() == ["latest", "step_00000002"]


def test_a_checkpoints_folder_removed_under_the_run(tmp_path: Path) -> None:
    run = saved_run(tmp_path, [1])
    shutil.rmtree(tmp_path / "checkpoints")
    run.save(2)
    assert run.resume().step == 2  # type: ignore[union-attr]


# Crashes


CRASH_POINTS: list[tuple[Any, str]] = [
    (os, "fsync"),
    (os, "symlink"),
    (Path, "mkdir"),
    (Path, "rename"),
    (Path, "replace"),
    (Path, "unlink"),
    (shutil, "rmtree"),
    (accel_train.checkpoint.files, "save_file"),
]


def crash_at(monkeypatch: pytest.MonkeyPatch, at: int) -> Callable[[], int]:
    """Lets the at-th change of the file system be the last one, and only half done where it can be. Counts them."""
    count = 0

    def counted(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def change(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count == at:
                if name == "rmtree" and Path(arguments[0]).is_dir():
                    next(Path(arguments[0]).iterdir()).unlink()
                if name == "save_file":
                    Path(arguments[1]).write_bytes(b"half a file")
                raise Crash(name)
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, change)

    for owner, name in CRASH_POINTS:
        counted(owner, name)
    return lambda: count


def test_a_crash_at_any_moment_of_a_save_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    """Steps 1 (best), 2 and 3 are there; the save of 4, the new best, prunes 1 and 2. Any of its changes may be the last."""
    old = {step: tensors_of(step) for step in (1, 2, 3, 4)}
    resumed_at = []
    for at in range(1, 100):
        folder = tmp_path / str(at)
        for step in (1, 2, 3):
            Run(folder, old[step], keep_last=2).save(step, best_step=1)
        with pytest.MonkeyPatch.context() as patch:
            changes = crash_at(patch, at)
            outcome = Run(folder, old[4], keep_last=2).save(4, best_step=4)[0]
        if not isinstance(outcome, Crash):
            assert changes() == at - 1 > 12
            break
        run = Run(folder, some_tensors(), keep_last=2)
        state = run.resume()
        assert state is not None
        resumed_at.append(state.step)
        assert all(
            torch.equal(run.engines[0].storage[name]["weight"], tensor) for name, tensor in old[state.step].items()
        ), f"crash at change {at} ({outcome}): the weights of step {state.step} are not those that were saved"
        kept = [3, 4] if state.step == 4 else [1, 2, 3]
        assert run.names() == ["best", "latest", *(f"step_{step:08d}" for step in kept)], (
            f"crash at change {at} ({outcome})"
        )
        assert os.readlink(run.root / "latest") == f"step_{state.step:08d}"
        assert os.readlink(run.root / "best") == f"step_{state.best_step:08d}"
        assert run.save(5, best_step=state.best_step) == [run.root / "step_00000005"]
    assert resumed_at == sorted(resumed_at)
    assert set(resumed_at) == {3, 4}, "crashes came before and after the checkpoint was complete"


def tensors_of(step: int) -> dict[str, Tensor]:
    return {name: tensor + step for name, tensor in some_tensors().items()}


def test_a_crash_while_tidying_up_after_a_crash(tmp_path: Path) -> None:
    for at in range(1, 100):
        folder = tmp_path / str(at)
        saved_run(folder, [1, 2, 3], best_step=2)
        (folder / "checkpoints" / "step_00000003" / "state.json").unlink()
        (folder / "checkpoints" / ".step_00000004.partial").mkdir()
        (folder / "checkpoints" / ".step_00000004.partial" / "file").touch()
        (folder / "checkpoints" / "best").unlink()
        with pytest.MonkeyPatch.context() as patch:
            crash_at(patch, at)
            try:
                assert Run(folder, some_tensors(), keep_last=1).resume() == TrainState(step=2, best_step=2)
                break
            except Crash:
                pass
        run = Run(folder, some_tensors(), keep_last=1)
        assert run.resume() == TrainState(step=2, best_step=2)
        assert run.names() == ["best", "latest", "step_00000002", "step_00000003.damaged"]
    assert at > 5


def test_reading_needs_no_file_beside_those_of_the_record(tmp_path: Path) -> None:
    run = saved_run(tmp_path, [1])
    (run.root / "step_00000001" / ".nfs0001").touch()
    assert run.resume().step == 1  # type: ignore[union-attr]
    (run.root / "step_12").mkdir()
    (run.root / "step_00000002.tmp").mkdir()
    assert [folder.name for folder in all_folders(run.root)] == ["step_00000001"]


def test_an_index_that_leaves_a_gap_is_damage(tmp_path: Path) -> None:
    layout: Layout = [[("embedding", 0, 5)]]
    run = Run(tmp_path, {"embedding": torch.ones(15)}, layout)
    run.save(1)
    with pytest.raises(DamagedCheckpoint, match="weight of embedding is not complete"):
        Run(tmp_path, {"embedding": torch.ones(15)}).resume()
