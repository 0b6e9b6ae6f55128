"""Saving and resuming. A checkpoint is complete or absent: written aside, synced, hashed, renamed, then old ones pruned."""

import copy
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from accel_train.checkpoint import files, folders
from accel_train.checkpoint.background import HostCopy, Writer
from accel_train.checkpoint.carried import CarriedState
from accel_train.checkpoint.folders import all_folders, folder_name
from accel_train.checkpoint.load import damage_at_a_glance, damage_in_share, read_into_engine
from accel_train.checkpoint.owned import owned_pieces
from accel_train.checkpoint.pieces import Pieces, write_pieces
from accel_train.checkpoint.saving import Part, Save, make_aside, publish
from accel_train.checkpoint.state import TrainState
from accel_train.engine.engine import Engine
from accel_train.errors import CheckFailed, UserError
from accel_train.inject import Faults
from accel_train.optim.param_groups import GroupPlan
from accel_train.run_log import RunLog

Result = TypeVar("Result")


class Checkpoints:
    """The checkpoints of one run. Every method is called by all ranks together, unless it says otherwise."""

    def __init__(
        self,
        run_dir: Path,
        engine: Engine,
        log: RunLog,
        *,
        keep_last: int,
        state_names: tuple[str, ...],
        in_background: bool = False,
        faults: Faults | None = None,
    ) -> None:
        self.root = run_dir / "checkpoints"
        self.engine = engine
        self.log = log
        self.keep_last = keep_last
        self.state_names = state_names
        self.in_background = in_background
        self.faults = faults or Faults((), rank=engine.rank, log=log)
        self.longest_save_seconds: float | None = None
        """From its begin until it was on disk; None before the first save of this process."""
        self._new_seconds: dict[str, float] = {}
        self._damaged: list[Path] = []
        self._passed_over: list[Path] = []
        self._under_way: Save | None = None
        self._writer = Writer()
        self._host_copy = HostCopy(engine.device)
        self._erasure: Future[None] | None = None

    def save(self, state: TrainState, about: dict[str, Any]) -> Path:
        """Writes a checkpoint of this step, unless it is there already. `about` goes into state.json as it is.

        In the background it is there after a later `settle`, and before the next update comes `wait_for_copy`. Metrics up to
        this step are on disk before it. Raises CheckFailed on every rank if any rank could not write; older checkpoints are
        untouched then.
        """
        final = self.root / folder_name(state.step)
        if self._under_way is not None:
            if self._under_way.final == final:
                return final
            self.log.say(
                f"the checkpoint of step {self._under_way.state.step} is still being written; that of step {state.step} "
                "waits for it"
            )
            self.settle()
        if self.engine.gather_objects(final.exists())[0]:
            return final
        save = Save(final, copy.deepcopy(state), about, began=time.monotonic())
        self.wait_for_erasure()  # else old and new ones might not fit on the disk together
        self.engine.share_buffers()  # only rank 0's are written, so all must go on with them
        self._together("write the log", self.log.sync)
        self._together("make the folder", lambda: make_aside(save, self.engine))
        if self.in_background:
            self._together("copy its part", lambda: self._host_copy.begin(owned_pieces(self.engine, self.state_names)))
            save.part = self._writer.start(lambda: self._copy_and_write(save))
        self._under_way = save
        save.stalled = time.monotonic() - save.began
        if not self.in_background:
            self.settle()
        return final

    @property
    def is_written(self) -> bool:
        """Whether a thread has ended with this rank's part of a save, well or not. Once it has on all ranks, `settle` need
        not wait. This rank alone."""
        return self._under_way is not None and self._under_way.part is not None and self._under_way.part.done()

    def wait_for_copy(self) -> None:
        """Before weights or optimizer state change: a save in the background may still be reading them. This rank alone."""
        if self._under_way is not None and not self._host_copy.is_done.is_set():
            began = time.monotonic()
            self._host_copy.is_done.wait()
            self._under_way.stalled += time.monotonic() - began

    def settle(self) -> None:
        """Waits until the save under way, if there is one, is written by all ranks, and publishes it. Raises CheckFailed."""
        save, self._under_way = self._under_way, None
        if save is None:
            return
        began = time.monotonic()
        parts = self._together("write its part", lambda: self._part_of(save))
        self._together("publish it", lambda: self._publish(save, parts))
        ended = time.monotonic()
        save.stalled += ended - began
        seconds = ended - save.began
        self._new_seconds = {"save_stall_seconds": save.stalled, "save_seconds": seconds}
        self.longest_save_seconds = max(self.longest_save_seconds or 0.0, seconds)
        self.log.note(
            f"checkpoint {save.final.name}: training stood still for {save.stalled:.2f} s, on disk after {seconds:.2f} s"
        )

    @property
    def seconds_to_leave(self) -> float | None:
        """How long saving may take at most before the run can end, as far as is known: one under way is waited for first."""
        longest = self.longest_save_seconds
        return 2 * longest if longest is not None and self.in_background else longest

    def new_seconds(self) -> dict[str, float]:
        """Of the last save since this was asked before: how long training stood still, and how long it took in all."""
        seconds, self._new_seconds = self._new_seconds, {}
        return seconds

    def wait_for_erasure(self) -> None:
        """Until old checkpoints have left the disk, which a thread sees to. This rank alone."""
        erasure, self._erasure = self._erasure, None
        if erasure is not None:
            erasure.result()

    def close(self) -> None:
        """Gives up a save under way, if an error has left one. This rank alone."""
        self._writer.close()

    def _part_of(self, save: Save) -> Part:
        """This rank's part, once it is written."""
        if save.part is not None:
            return save.part.result()
        return self._write(save, owned_pieces(self.engine, self.state_names))

    def _copy_and_write(self, save: Save) -> Part:
        self._host_copy.finish()
        return self._write(save, self._host_copy.pieces)

    def _write(self, save: Save, pieces: Pieces) -> Part:
        if not self.engine.is_main:
            folders.wait_for_folder(save.aside)
        record = write_pieces(save.aside, pieces, self._writer.given_up, self.engine.whereabouts)
        self.faults.at("write", save.state.step, save.aside / record.name)
        return record, pieces.index

    def _publish(self, save: Save, parts: list[Part]) -> None:
        publish(save, parts, self.engine, self.faults)
        if self.engine.is_main:
            self._tidy(save.state)

    def _tidy(self, state: TrainState) -> None:
        """Sets `latest` and `best`, and lets a thread remove old checkpoints and what a kill left half done. `state` is the
        newest's."""
        self.faults.at("link", state.step)
        folders.link(self.root, newest=state.step, best=state.best_step)
        self.faults.at("prune", state.step, self.root / folder_name(state.step))
        # In a row of skipped steps the last good checkpoint is kept, whatever comes after it: a rollback needs it.
        doomed = folders.prune(self.root, keep_last=None if state.skipped_in_a_row else self.keep_last)
        self._erasure = self._writer.start(lambda: folders.erase(doomed))

    def _together(self, what: str, action: Callable[[], Result]) -> list[Result]:
        """Runs an action on every rank and agrees on the outcome; returns every rank's result, a small object."""
        outcome: tuple[str | None, Any]
        try:
            outcome = (None, action())
        except OSError as error:
            outcome = (f"{error.strerror} ({error.filename})" if error.filename else error.strerror or str(error), None)
        outcomes = self.engine.gather_objects(outcome)
        failed = [f"rank {rank} could not {what}: {error}" for rank, (error, _) in enumerate(outcomes) if error]
        if failed:
            if self.engine.is_main:
                folders.remove_partial(self.root)
            newest = self.engine.gather_objects([folder.name for folder in all_folders(self.root)])[0]
            raise CheckFailed(
                f"{self.root}: {'; '.join(failed)}. The last good checkpoint is {newest[0] if newest else 'none'}. "
                "Free space or mend the disk, then start the same command again.",
                code="AT304",
            )
        return [result for _, result in outcomes]

    def newest_valid(
        self, is_wanted: Callable[[dict[str, Any]], bool] = lambda saved: True
    ) -> tuple[Path, dict[str, Any]] | None:
        """The newest checkpoint that is whole, and its state.json; damaged ones are named and passed over.

        `is_wanted` looks at the state.json of a whole one; newer ones that it turns down are removed by `load`.
        Raises UserError if there are checkpoints and none is whole: training from scratch would bury them.
        """
        self.settle()
        found = self.engine.gather_objects([folder.name for folder in all_folders(self.root)])[0]
        for name in found:
            folder = self.root / name
            problem = self._problem(folder)
            if problem:
                self._damaged.append(folder)
                self.log.say(f"warning: checkpoint {name} is damaged and passed over: {problem}")
            elif is_wanted(saved := files.read_state(folder)):
                return folder, saved
            else:
                self._passed_over.append(folder)
        if self._damaged:
            raise UserError(
                f"{self.root}: none of the {len(found)} checkpoints is whole. Restore one, or move the folder away to "
                "start anew.",
                code="AT303",
            )
        return None

    def _problem(self, folder: Path) -> str | None:
        """What is wrong with a checkpoint: rank 0 looks whether all is there, then each rank reads its share."""
        glance = damage_at_a_glance(folder) if self.engine.is_main else None
        if problem := self.engine.gather_objects(glance)[0]:
            return str(problem)
        share = slice(self.engine.rank, None, self.engine.world_size)
        return next(filter(None, self.engine.gather_objects(damage_in_share(folder, share))), None)

    def load(self, folder: Path, state: TrainState, plan: GroupPlan) -> None:
        """Copies a checkpoint, from any engine and number of ranks, into the engine.

        Parameters whose first step this is begin with empty optimizer state. Newer checkpoints that were passed over don't
        count as this run's any more: damaged ones are renamed, others removed.
        """
        beginners = plan.that_begin_at(state.step)
        self.engine.together(lambda: read_into_engine(self.engine, folder, self.state_names, beginners))
        self.engine.finish_loading([state.updates_since(group.first_step) for group in plan.groups])
        self._together("tidy up", lambda: self._tidy_after_kill(state))
        self._damaged, self._passed_over = [], []

    def carry(self, carried: CarriedState, plan: GroupPlan) -> None:
        """Copies optimizer state from another run into the engine, before the first step."""

        def copy_state() -> None:
            for shard in self.engine.shards(self.state_names):
                if shard.name in carried.updates:
                    for kind, piece in shard.state.items():
                        carried.read_into(piece, kind, shard.name, shard.offset)

        self.engine.together(copy_state)
        self.engine.finish_loading([-group.first_step for group in plan.groups])

    def _tidy_after_kill(self, state: TrainState) -> None:
        if self.engine.is_main:
            for folder in self._damaged:
                folders.set_aside(folder)
            for folder in self._passed_over:
                folders.remove(folder)
            self._tidy(state)
