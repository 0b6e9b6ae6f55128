"""Saving and resuming. A checkpoint is complete or absent: written aside, synced, hashed, renamed, then old ones pruned."""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from accel_train.checkpoint import files
from accel_train.checkpoint.carried import CarriedState
from accel_train.checkpoint.files import DamagedCheckpoint, Reader
from accel_train.checkpoint.state import TrainState
from accel_train.engine.engine import Engine
from accel_train.engine.shards import Shard
from accel_train.errors import CheckFailed, UserError
from accel_train.inject import Faults
from accel_train.optim.param_groups import GroupPlan
from accel_train.run_log import RunLog


class Checkpoints:
    """The checkpoints of one run. Every method is called by all ranks together."""

    def __init__(
        self,
        run_dir: Path,
        engine: Engine,
        log: RunLog,
        *,
        keep_last: int,
        state_names: tuple[str, ...],
        faults: Faults | None = None,
    ) -> None:
        self.root = run_dir / "checkpoints"
        self.engine = engine
        self.log = log
        self.keep_last = keep_last
        self.state_names = state_names
        self.faults = faults or Faults((), rank=engine.rank, log=log)
        self._damaged: list[Path] = []
        self._passed_over: list[Path] = []

    def save(self, state: TrainState, about: dict[str, Any]) -> Path:
        """Writes a checkpoint of this step, unless it is there already. `about` goes into state.json as it is.

        Metrics up to this step are on disk before it. Raises CheckFailed on every rank if any rank could not write; older
        checkpoints are untouched then.
        """
        final = self.root / folder_name(state.step)
        if self.engine.gather_objects(final.exists())[0]:
            return final
        aside = self.root / f".{final.name}.partial"
        self.engine.share_buffers()  # only rank 0's are written, so all must go on with them
        self._together("write the log", self.log.sync)
        self._together("make the folder", self._make_aside, aside)
        written = self._together("write its part", self._write, aside, state.step)
        records, indexes = zip(*written, strict=True)
        self._together(
            "publish it", self._publish, aside, final, state, about, list(records), files.joined_index(indexes)
        )
        return final

    def _make_aside(self, aside: Path) -> None:
        if self.engine.is_main:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)

    def _write(self, aside: Path, step: int) -> tuple[files.FileRecord, files.Index]:
        buffers = _persistent_buffers(self.engine) if self.engine.is_main else {}
        record, index = files.write_pieces(aside, self.engine.rank, self._owned(), buffers)
        self.faults.at("write", step, aside / record.name)
        return record, index

    def _owned(self) -> Iterator[Shard]:
        """This rank's shards; where all ranks hold the same, each takes a share of about equal size."""
        load = [0] * self.engine.world_size
        for shard in self.engine.shards(self.state_names):
            owner = load.index(min(load)) if shard.replicated else self.engine.rank
            if shard.replicated:
                load[owner] += shard.weight.numel()
            if owner == self.engine.rank:
                yield shard

    def _publish(
        self,
        aside: Path,
        final: Path,
        state: TrainState,
        about: dict[str, Any],
        records: list[files.FileRecord],
        index: files.Index,
    ) -> None:
        if not self.engine.is_main:
            return
        files.write_json(aside / files.INDEX_FILE, index)
        content = {
            "format": files.FORMAT,
            **asdict(state),
            "engine": self.engine.launch.engine,
            "world_size": self.engine.world_size,
            "versions": {name: version(name) for name in ("accel_train", "torch", "accelerate", "transformers")},
            **about,
            "files": [asdict(record) for record in [files.record_of(aside / files.INDEX_FILE), *records]],
        }
        files.write_state(aside, content)
        files.sync(aside)
        self.faults.at("publish", state.step)
        aside.rename(final)
        files.sync(self.root)
        self._tidy(state)

    def _tidy(self, state: TrainState) -> None:
        """Sets `latest` and `best`, and removes old checkpoints and what a kill left half done. `state` is the newest's."""
        self.faults.at("link", state.step)
        point(self.root / "latest", self.root / folder_name(state.step))
        best = self.root / "best"
        if state.best_step is not None and (self.root / folder_name(state.best_step)).is_dir():
            point(best, self.root / folder_name(state.best_step))
        self.faults.at("prune", state.step, self.root / folder_name(state.step))
        kept = {best.resolve().name} if best.exists() else set()
        for leftover in self.root.glob(".step_*"):
            shutil.rmtree(leftover, ignore_errors=True)
        # In a row of skipped steps the last good checkpoint is kept, whatever comes after it: a rollback needs it.
        for folder in all_folders(self.root)[self.keep_last :] if not state.skipped_in_a_row else []:
            if folder.name not in kept:
                _remove(folder)

    def _together(self, what: str, action: Any, *arguments: Any) -> list[Any]:
        """Runs an action on every rank and agrees on the outcome; returns every rank's result."""
        outcome: tuple[str | None, Any]
        try:
            outcome = (None, action(*arguments))
        except OSError as error:
            outcome = (f"{error.strerror} ({error.filename})" if error.filename else error.strerror or str(error), None)
        outcomes = self.engine.gather_objects(outcome)
        failed = [f"rank {rank} could not {what}: {error}" for rank, (error, _) in enumerate(outcomes) if error]
        if failed:
            if self.engine.is_main:
                for leftover in self.root.glob(".step_*.partial"):
                    shutil.rmtree(leftover, ignore_errors=True)
            newest = all_folders(self.root)
            raise CheckFailed(
                f"{self.root}: {'; '.join(failed)}. The last good checkpoint is {newest[0].name if newest else 'none'}. "
                "Free space or mend the disk, then start the same command again."
            )
        return [result for _, result in outcomes]

    def newest_valid(
        self, is_wanted: Callable[[dict[str, Any]], bool] = lambda saved: True
    ) -> tuple[Path, dict[str, Any]] | None:
        """The newest checkpoint that is whole, and its state.json; damaged ones are named and passed over.

        `is_wanted` looks at the state.json of a whole one; newer ones that it turns down are removed by `load`.
        Raises UserError if there are checkpoints and none is whole: training from scratch would bury them.
        """
        found = self.engine.gather_objects([folder.name for folder in all_folders(self.root)])[0]
        for name in found:
            folder = self.root / name
            problems = [problem for problem in self.engine.gather_objects(self._damage(folder)) if problem]
            if problems:
                self._damaged.append(folder)
                self.log.say(f"warning: checkpoint {name} is damaged and passed over: {problems[0]}")
            elif is_wanted(saved := files.read_state(folder)):
                return folder, saved
            else:
                self._passed_over.append(folder)
        if self._damaged:
            raise UserError(
                f"{self.root}: none of the {len(found)} checkpoints is whole. Restore one, or move the folder away to "
                "start anew."
            )
        return None

    def _damage(self, folder: Path) -> str | None:
        """What this rank's share of the files shows, or None."""
        try:
            state = files.read_state(folder)
            files.check_files(folder, state, slice(self.engine.rank, None, self.engine.world_size))
        except (DamagedCheckpoint, OSError) as error:
            return str(error)
        except (KeyError, TypeError) as error:
            return f"{folder / files.STATE_FILE}: {error!r}"
        return None

    def load(self, folder: Path, state: TrainState, plan: GroupPlan) -> None:
        """Copies a checkpoint, from any engine and number of ranks, into the engine.

        Parameters whose first step this is begin with empty optimizer state. Newer checkpoints that were passed over don't
        count as this run's any more: damaged ones are renamed, others removed.
        """
        self.engine.together(lambda: self._read(folder, plan.that_begin_at(state.step)))
        self.engine.finish_loading([state.updates_since(group.first_step) for group in plan.groups])
        self._together("tidy up", self._tidy_after_kill, state)
        self._damaged, self._passed_over = [], []

    def carry(self, carried: CarriedState, plan: GroupPlan) -> None:
        """Copies optimizer state from another run into the engine, before the first step."""

        def copy() -> None:
            for shard in self.engine.shards(self.state_names):
                if shard.name in carried.updates:
                    for kind, piece in shard.state.items():
                        carried.read_into(piece, kind, shard.name, shard.offset)

        self.engine.together(copy)
        self.engine.finish_loading([-group.first_step for group in plan.groups])

    def _read(self, folder: Path, beginners: frozenset[str]) -> None:
        reader = Reader(folder)
        for shard in self.engine.shards(self.state_names):
            held = {} if shard.name in beginners else shard.state
            for kind, piece in {files.WEIGHT: shard.weight, **held}.items():
                _check_shape(reader, kind, shard.name, shard.shape, folder)
                reader.read_into(piece, kind, shard.name, shard.offset)
        for name, buffer in _persistent_buffers(self.engine).items():
            _check_shape(reader, files.BUFFER, name, tuple(buffer.shape), folder)
            reader.read_into(buffer.view(-1), files.BUFFER, name, 0)

    def _tidy_after_kill(self, state: TrainState) -> None:
        if not self.engine.is_main:
            return
        for folder in self._damaged:
            aside = folder.with_name(f"{folder.name}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
        for folder in self._passed_over:
            _remove(folder)
        self._tidy(state)


def load_weights(folder: Path) -> dict[str, Tensor]:
    """Whole parameters and buffers of a checkpoint by name, on the CPU. Raises UserError if it is damaged."""
    try:
        files.check_files(folder, files.read_state(folder))
    except DamagedCheckpoint as damage:
        raise UserError(f"{folder} can't be used: {damage}") from damage
    reader = Reader(folder)
    return {
        name: reader.read(kind, name) for kind in (files.WEIGHT, files.BUFFER) for name in reader.index.get(kind, {})
    }


def folder_name(step: int) -> str:
    return f"step_{step:08d}"


def all_folders(root: Path) -> list[Path]:
    """Published checkpoints, newest first."""
    return sorted(root.glob("step_" + "[0-9]" * 8), reverse=True)


def point(link: Path, folder: Path) -> None:
    """Makes `latest` or `best` point at a checkpoint, in one step."""
    fresh = link.with_name(f".{link.name}.new")
    fresh.unlink(missing_ok=True)
    os.symlink(folder.name, fresh)
    fresh.replace(link)


def _remove(folder: Path) -> None:
    """Renamed first, so that a kill in the middle leaves no checkpoint that looks whole."""
    doomed = folder.with_name(f".{folder.name}.deleted")
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _check_shape(reader: Reader, kind: str, name: str, shape: Iterable[int], folder: Path) -> None:
    found = reader.shape(kind, name)
    if found is None:
        raise UserError(
            f"{folder} holds no {kind} of {name}: the model or its frozen layers changed. To start from these weights "
            "with a fresh optimizer use initialize_from and another run_dir."
        )
    if found != tuple(shape):
        raise UserError(
            f"{folder}: {name} has shape {found} there and {tuple(shape)} in the model of this configuration."
        )


def _persistent_buffers(engine: Engine) -> dict[str, Tensor]:
    """Buffers that state_dict would hold, found without touching sharded parameters."""
    return {
        f"{prefix}.{name}" if prefix else name: buffer
        for prefix, module in engine.bare_model().named_modules()
        for name, buffer in module.named_buffers(recurse=False)
        if name not in module._non_persistent_buffers_set
    }
