import json
import sys
from pathlib import Path

import pytest

from accel_train.stopping import StopRequest
from accel_train.tools.sweep.trial_run import ScoreReader, in_words, last_words, run_trial, train_command


def write(path: Path, *rows: tuple[int, str, float], torn: str = "") -> None:
    lines = [json.dumps({"step": step, "split": split, "recall": value}) + "\n" for step, split, value in rows]
    path.write_text("".join(lines) + torn, encoding="utf-8")


def test_scores_are_those_of_the_split_after_the_first_step(tmp_path):
    reader = ScoreReader(tmp_path, "valid", "recall")
    assert not reader.read()
    write(tmp_path / "metrics.jsonl", (0, "valid", 0.9), (10, "train", 0.8), (10, "valid", 0.1), (20, "valid", 0.2))
    assert reader.read()
    assert reader.scores == [(10, 0.1), (20, 0.2)]
    assert not reader.read()


def test_a_line_is_read_once_it_is_whole(tmp_path):
    path = tmp_path / "metrics.jsonl"
    reader = ScoreReader(tmp_path, "valid", "recall")
    write(path, (10, "valid", 0.1), torn='{"step": 20, "split": "va')
    assert reader.read() and reader.scores == [(10, 0.1)]
    with path.open("a", encoding="utf-8") as file:
        file.write('lid", "recall": 0.2}\n')
    assert reader.read() and reader.scores == [(10, 0.1), (20, 0.2)]


def test_what_a_resume_cut_off_is_forgotten(tmp_path):
    path = tmp_path / "metrics.jsonl"
    reader = ScoreReader(tmp_path, "valid", "recall")
    write(path, (10, "valid", 0.1), (20, "valid", 0.2), (30, "valid", 0.3))
    reader.read()
    write(tmp_path / "aside", (10, "valid", 0.1))
    (tmp_path / "aside").replace(path)
    reader.read()
    assert reader.scores == [(10, 0.1)]


@pytest.fixture
def run(tmp_path):
    def one(program: str):
        with (tmp_path / "lock").open("w") as lock:
            return run_trial(
                [sys.executable, "-c", program],
                tmp_path,
                ScoreReader(tmp_path, "valid", "recall"),
                behind=lambda scores: True,
                stop=StopRequest(),
                keep_open=lock.fileno(),
                has_launcher=False,
            )

    return one


OUTCOME = "import os, sys; open(os.environ['ACCEL_TRAIN_OUTCOME'], 'w').write('{}'); sys.exit({})"


@pytest.mark.parametrize(
    ("program", "state", "reason"),
    [
        ("print('done')", "complete", ""),
        (OUTCOME.format("done ", 1), "complete", ""),  # a launcher's code does not count
        (OUTCOME.format("stopped by SIGTERM", 1), "stopped", ""),
        (OUTCOME.format("refused data.path: nothing there", 2), "failed", "data.path: nothing there"),
        (OUTCOME.format("failed a NaN", 1), "failed", "a NaN"),
        ("print('a'); 1 / 0", "failed", "exit code 1: ZeroDivisionError: division by zero"),
        ("import os; print('b', flush=True); os.kill(os.getpid(), 9)", "failed", "killed by SIGKILL: b"),
        ("import sys; sys.exit(3)", "failed", "exit code 3: it printed nothing"),
    ],
)
def test_how_a_trial_ended(run, program, state, reason):
    found = run(program)
    assert (found.state, found.reason) == (state, reason)


def test_an_earlier_start_does_not_speak_for_this_one(run, tmp_path):
    assert run(OUTCOME.format("failed a NaN", 1)).reason == "a NaN"
    (tmp_path / "STOP").touch()
    assert run("print('c'); import sys; sys.exit(4)").reason == "exit code 4: c"
    assert not (tmp_path / "STOP").exists()


LISTENS = """
import os, signal, sys, time
os.chdir(sys.argv[1])
def leave(*_):
    open("saw", "w").write(f"STOP {os.path.exists('STOP')}")
    sys.exit(75)
signal.signal(signal.SIGTERM, leave)
open("metrics.jsonl", "w").write('{"step": 10, "split": "valid", "recall": 0.1}\\n')
time.sleep(60)
"""


def test_a_trial_that_is_behind_is_asked_to_stop_by_file_and_signal(run, tmp_path):
    found = run(LISTENS.replace("sys.argv[1]", repr(str(tmp_path))))
    assert found.state == "pruned"
    assert (tmp_path / "saw").read_text(encoding="utf-8") == "STOP True"
    assert not (tmp_path / "STOP").exists()


def test_a_worker_that_fails_leaves_no_process_behind(tmp_path):
    def fail(scores):
        raise OSError("No space left on device")

    with (tmp_path / "lock").open("w") as lock, pytest.raises(OSError, match="No space left"):
        run_trial(
            [sys.executable, "-c", LISTENS.replace("sys.argv[1]", repr(str(tmp_path)))],
            tmp_path,
            ScoreReader(tmp_path, "valid", "recall"),
            behind=fail,
            stop=StopRequest(),
            keep_open=lock.fileno(),
            has_launcher=False,
        )
    assert (tmp_path / "saw").read_text(encoding="utf-8") == "STOP True"


def test_the_launchers_words_come_first():
    path = Path("c.yaml")
    assert train_command(None, path) == [sys.executable, "-m", "accel_train", "train", "c.yaml"]
    launched = train_command("accelerate launch --config_file 'a b.yaml' --num_processes 2", path)
    assert launched[:5] == ["accelerate", "launch", "--config_file", "a b.yaml", "--num_processes"]
    assert launched[-4:] == ["-m", "accel_train", "train", "c.yaml"]


def test_words():
    assert in_words(-15) == "killed by SIGTERM"
    assert in_words(2) == "exit code 2"
    assert last_words("a\n b \n\n") == "b"
    launched = "[rank1]: torch.OutOfMemoryError: CUDA out of memory.\nW1122 Sending SIGTERM\n"
    launched += "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: \n=======\n"
    assert last_words(launched) == "torch.OutOfMemoryError: CUDA out of memory."
    assert last_words("ValueError: inner\nDuring handling ...\nKeyError: 'outer'\n") == "KeyError: 'outer'"
    assert last_words("Killed\n") == "Killed"
    assert len(last_words("x" * 9999)) == 400
