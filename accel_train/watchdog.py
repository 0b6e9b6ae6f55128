"""Ends a run in which nothing moves any more, and says first where every rank is.

A hang is global: one rank is stuck or gone, and the others wait for it in a collective that never returns. So a rank that
has not moved for the limit looks at the others before it acts: as long as one of them moves, it waits for something slow.

The ranks see each other through small files in the run's folder. Those outlive the process that wrote them, whichever it
was; a store in rank 0's memory would die with rank 0 or its host, and with the network that may be what hangs. Where that
folder is what hangs, a rank decides alone.
"""

import faulthandler
import json
import os
import secrets
import shutil
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from accel_train.engine.engine import Engine
from accel_train.errors import explained_by
from accel_train.rank_names import name_ranks
from accel_train.run_log import LOG_FILE

FOLDER = ".ranks"
HANG = "AT603"
LOOKS = 20
"""In the time of the limit."""
READINGS = 6
"""Notes are compared over a quarter of the limit: file systems that hosts share may show old ones for a minute."""
LONGEST_PAUSE = 60.0
LONGEST_REPORT = 20.0
"""Seconds for the files of a report: the disk may be what hangs."""


@dataclass(frozen=True, slots=True)
class Note:
    """What a rank leaves for the others, again and again."""

    launch: str
    """The same for all ranks of a start, so that notes from an earlier one don't count."""
    beat: int
    """How often it was written: a rank whose beat stands still is gone or stopped."""
    host: str
    place: str
    waits: bool
    """Whether the rank is in a collective."""
    still: float
    """Seconds without a move."""


@contextmanager
def watched(engine: Engine, run_dir: Path, hang_minutes: float | None) -> Iterator[None]:
    """Watches this rank, and with it all ranks, while the block runs. All ranks enter together. None: unwatched."""
    if hang_minutes is None:
        yield
        return
    if engine.is_main:
        shutil.rmtree(run_dir / FOLDER, ignore_errors=True)
    launch = engine.gather_objects(secrets.token_hex(4))[0]
    watchdog = Watchdog(engine, run_dir, launch, limit=60 * hang_minutes)
    watchdog.start()
    try:
        yield
    finally:
        watchdog.stop()


class Watchdog:
    """Two threads of one rank: one writes and reads notes, which may hang with the disk; one judges, and touches none."""

    def __init__(self, engine: Engine, run_dir: Path, launch: str, *, limit: float) -> None:
        self.here = engine.whereabouts
        self.rank = engine.rank
        self.world_size = engine.world_size
        self.run_dir = run_dir
        self.folder = run_dir / FOLDER
        self.launch = launch
        self.limit = limit
        self.pause = min(limit / LOOKS, LONGEST_PAUSE)
        self.still = 0.0
        """Seconds in which this rank has not moved."""
        self.readings: list[dict[int, Note]] = []
        """The notes of all ranks, read since this rank has stood still for the limit; the last few."""
        self._end = threading.Event()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._keep_notes, self._judge)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """The run has come to its end by itself."""
        self._end.set()
        for thread in self._threads:
            thread.join(LONGEST_REPORT)
        with suppress(OSError):
            self._path(self.rank).unlink(missing_ok=True)
            self.folder.rmdir()  # by the last rank; for the others it is not empty

    # Notes

    def _keep_notes(self) -> None:
        beat = 0
        while True:
            beat += 1
            with suppress(OSError):
                self._write(beat)
            if self.still < self.limit:
                self.readings = []
            else:
                self.readings = [*self.readings[1 - READINGS :], self._read()]
            if self._end.wait(self.pause):
                return

    def _write(self, beat: int) -> None:
        here = self.here
        note = Note(self.launch, beat, socket.gethostname(), str(here), bool(here.collective), self.still)
        self.folder.mkdir(exist_ok=True)  # without parents: a run's folder that was removed is not made anew
        aside = self._path(self.rank).with_suffix(".new")
        aside.write_text(json.dumps(asdict(note)), encoding="utf-8")
        aside.replace(self._path(self.rank))

    def _read(self) -> dict[int, Note]:
        notes = {}
        for rank in range(self.world_size):
            with suppress(OSError, ValueError, TypeError):
                note = Note(**json.loads(self._path(rank).read_text(encoding="utf-8")))
                if note.launch == self.launch:
                    notes[rank] = note
        return notes

    def _path(self, rank: int) -> Path:
        return self.folder / f"rank_{rank:05d}.json"

    # Judgement

    def _judge(self) -> None:
        moves, then, since_limit = self.here.moves, time.monotonic(), 0
        while not self._end.wait(self.pause):
            now = time.monotonic()
            # A process that was stopped (by a debugger, or a scheduler that suspends jobs) stood still for no time.
            passed, then = min(now - then, 2 * self.pause), now
            if self.here.moves != moves:
                moves, self.still, since_limit = self.here.moves, 0.0, 0
                continue
            self.still += passed
            since_limit += self.still >= self.limit
            if since_limit and self._nothing_moves(since_limit):
                self._end_job()

    def _nothing_moves(self, looks: int) -> bool:
        """Whether no other rank moves, as far as can be seen after so many looks beyond the limit."""
        if self.world_size == 1:
            return True
        if len(readings := self.readings) < READINGS:
            return looks > 2 * READINGS  # the folder does not answer
        silent = silent_ranks(readings)
        return all(note.still >= self.limit for rank, note in readings[-1].items() if rank not in silent)

    def _end_job(self) -> None:
        readings = self.readings
        text = report(readings, rank=self.rank, world_size=self.world_size, own=str(self.here), minutes=self.limit / 60)
        names_all = self._is_first()
        first_line, _, rest = text.partition("\n")
        own_file = self.run_dir / f"hang_rank_{self.rank:05d}.txt"
        said = f"{first_line}\n{rest}\n" if names_all else f"{first_line} This rank: {self.here}.\n"
        speaker = f"rank {self.rank} of {self.world_size}" if self.world_size > 1 else "watchdog"
        with suppress(OSError):
            os.write(
                sys.stderr.fileno(),
                f"accel-train ({speaker}): {said}What it was doing: {own_file} {explained_by(HANG)}\n".encode(),
            )
        files = threading.Thread(target=self._leave_files, args=(text, own_file, names_all), daemon=True)
        files.start()
        files.join(LONGEST_REPORT)
        if self.world_size > 1:
            time.sleep(
                3 * self.pause
            )  # a launcher kills the others as soon as one ends: let them leave their files too
        os._exit(1)

    def _is_first(self) -> bool:
        """Whether this rank is the one that reports on all; each is, where the folder does not answer."""
        if not self.readings:
            return True
        try:
            (self.folder / "reported").touch(exist_ok=False)
        except FileExistsError:
            return False
        except OSError:
            return True
        return True

    def _leave_files(self, text: str, own_file: Path, names_all: bool) -> None:
        with suppress(OSError):
            if names_all:
                with (self.run_dir / LOG_FILE).open("a", encoding="utf-8") as log:
                    log.write(f"{datetime.now():%Y-%m-%d %H:%M:%S} {text}\n")
            with own_file.open("w", encoding="utf-8") as file:
                file.write(f"{text}\nThreads of rank {self.rank}:\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)


def silent_ranks(readings: list[dict[int, Note]]) -> set[int]:
    """Ranks whose note has not changed between the first reading and the last."""
    first, last = readings[0], readings[-1]
    return {rank for rank, note in last.items() if rank in first and note.beat == first[rank].beat}


def report(readings: list[dict[int, Note]], *, rank: int, world_size: int, own: str, minutes: float) -> str:
    """What is known of every rank, ranks in the same place together, and who is missing."""
    lines = [f"nothing has moved for {minutes:g} minutes (hang_minutes), so the job is ended."]
    if len(readings) < READINGS:
        if world_size > 1:
            lines.append(f"rank {rank}: {own}. Of the others nothing is known: the run's folder does not answer.")
        else:
            lines.append(f"The one rank: {own}.")
    else:
        notes, silent = readings[-1], silent_ranks(readings)
        absent = set(range(world_size)) - set(notes)
        alike: dict[str, list[int]] = {}
        for number, note in notes.items():
            what = "silent, so gone or stopped; last seen" if number in silent else "waits"
            alike.setdefault(f"on {note.host}: {what} at {note.place}", []).append(number)
        lines += [f"{name_ranks(numbers)} {where}" for where, numbers in alike.items()]
        if absent:
            lines.append(f"{name_ranks(absent)}: not a sign of life since the start, or at its end already")
        waiting = {number for number, note in notes.items() if note.waits and number not in silent}
        missing = set(range(world_size)) - waiting
        if waiting and missing:
            lines.append(f"In a collective: {name_ranks(waiting)}. Not there: {name_ranks(missing)}.")
    lines.append("Checkpoints are as they were: the same command goes on from the last one.")
    return "\n".join(lines)
