"""The watchdog's judgement and words. Engines are stand-ins; whole runs that hang are in tests/faults."""

import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest

from accel_train import watchdog
from accel_train.rank_names import name_ranks
from accel_train.watchdog import READINGS, Note, Watchdog, report, silent_ranks
from accel_train.whereabouts import Whereabouts


@dataclass
class Engine:
    rank: int = 0
    world_size: int = 1
    whereabouts: Whereabouts = field(default_factory=Whereabouts)


def note(beat: int, still: float = 100.0, *, host: str = "a", place: str = "step 3, data", waits: bool = False) -> Note:
    return Note("launch", beat, host, place, waits, still)


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Exit codes with which a watchdog would have ended this process."""
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    return codes


def watch(tmp_path: Path, engine: Engine, limit: float = 0.2) -> Watchdog:
    return Watchdog(engine, tmp_path, "launch", limit=limit)  # type: ignore[arg-type]


def test_ranks_in_words() -> None:
    assert name_ranks([4]) == "rank 4"
    assert name_ranks({3, 0, 1, 2, 7, 9, 10}) == "ranks 0-3, 7, 9-10"


def test_places_in_words() -> None:
    here = Whereabouts()
    here.step = 37
    here.begin("forward and backward")
    assert str(here) == "step 37, forward and backward"
    here.enter("sum_")
    assert str(here) == "step 37, forward and backward, in the collective sum_"
    here.leave()
    assert str(here) == "step 37, forward and backward"
    assert here.moves == 3


def test_a_note_costs_next_to_nothing() -> None:
    here = Whereabouts()
    began = time.perf_counter()
    for _ in range(10_000):
        here.enter("exchange")
        here.leave()
    assert (time.perf_counter() - began) / 20_000 < 10e-6


def test_a_rank_that_stands_still_is_ended(tmp_path: Path, ends: list[int], capfd: pytest.CaptureFixture[str]) -> None:
    engine = Engine()
    engine.whereabouts.begin("waiting for data")
    dog = watch(tmp_path, engine)
    dog.start()
    limit = time.monotonic() + 20
    while not ends and time.monotonic() < limit:
        time.sleep(0.01)
    dog.stop()
    assert ends[0] == 1
    assert "The one rank: step 0, waiting for data." in capfd.readouterr().err
    assert "test_watchdog.py" in (tmp_path / "hang_rank_00000.txt").read_text(), "this thread's stack"
    assert "nothing has moved" in (tmp_path / "run.log").read_text()


def test_a_rank_that_moves_is_left_alone(tmp_path: Path, ends: list[int]) -> None:
    engine = Engine()
    dog = watch(tmp_path, engine, limit=2.0)
    dog.start()
    for _ in range(30):
        engine.whereabouts.move()
        time.sleep(0.1)
    dog.stop()
    assert ends == []
    assert list(tmp_path.iterdir()) == [], "its notes go with it"


def test_a_folder_that_is_gone_is_not_made_anew(tmp_path: Path, ends: list[int]) -> None:
    dog = watch(tmp_path / "gone", Engine(), limit=60.0)
    dog.start()
    time.sleep(0.05)
    dog.stop()
    assert not (tmp_path / "gone").exists()
    assert ends == []


def test_others_that_move_are_waited_for(tmp_path: Path) -> None:
    dog = watch(tmp_path, Engine(world_size=3), limit=10.0)
    stuck, slow = note(1, still=12.0), note(1, still=2.0)
    alive = [{0: stuck, 1: note(beat, still=12.0), 2: note(beat, still=2.0)} for beat in range(READINGS)]
    dog.readings = alive
    assert not dog._nothing_moves(1), "rank 2 moved 2 s ago"
    dog.readings = [one | {2: slow} for one in alive]
    assert dog._nothing_moves(1), "its note says so, but is an old one"
    dog.readings = [one | {2: note(1, still=11.0)} for one in alive]
    assert dog._nothing_moves(1)


def test_without_the_folder_it_decides_alone(tmp_path: Path) -> None:
    dog = watch(tmp_path, Engine(world_size=2))
    assert not dog._nothing_moves(READINGS)
    assert dog._nothing_moves(2 * READINGS + 1)


def test_notes_of_other_starts_and_torn_ones_do_not_count(tmp_path: Path) -> None:
    dog = watch(tmp_path, Engine(world_size=4))
    dog._write(1)
    for rank, text in enumerate(
        (None, "{", json.dumps(asdict(note(1))), json.dumps(asdict(note(1)) | {"launch": "old"}))
    ):
        if text is not None:
            dog._path(rank).write_text(text)
    assert sorted(dog._read()) == [0, 2]


def test_the_report_groups_ranks_and_names_the_missing() -> None:
    here = {"host": "node1", "place": "step 8, agreeing, in the collective exchange", "waits": True}
    before = {rank: note(1, **here) for rank in range(4)} | {4: note(7, host="node2", place="step 8, data")}  # type: ignore[arg-type]
    after = {rank: note(2, **here) for rank in range(4)} | {4: before[4]}  # type: ignore[arg-type]
    readings = [before] * (READINGS - 1) + [after]
    assert silent_ranks(readings) == {4}
    lines = report(readings, rank=0, world_size=6, own="", minutes=30).splitlines()
    assert lines[0] == "nothing has moved for 30 minutes (hang_minutes), so the job is ended."
    assert lines[1] == "ranks 0-3 on node1: waits at step 8, agreeing, in the collective exchange"
    assert lines[2] == "rank 4 on node2: silent, so gone or stopped; last seen at step 8, data"
    assert lines[3].startswith("rank 5: not a sign of life")
    assert lines[4] == "In a collective: ranks 0-3. Not there: ranks 4-5."


def test_one_rank_alone_reports_on_all(tmp_path: Path) -> None:
    dogs = [watch(tmp_path, Engine(rank=rank, world_size=2)) for rank in range(2)]
    (tmp_path / watchdog.FOLDER).mkdir()
    for dog in dogs:
        dog.readings = [{}]
    assert [dog._is_first() for dog in dogs] == [True, False]
    dogs[1].readings = []
    assert dogs[1]._is_first(), "it has never seen the folder"
