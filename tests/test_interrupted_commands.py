"""Ctrl-C and SIGTERM in the midst of every command: one line, the shell's exit code, nothing half-written, nothing left."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.faults.conftest import base_config, make_dataset
from tests.tools.init.conftest import write_pairs

ROOT = Path(__file__).parents[1]
MOMENTS = ((0.2, signal.SIGINT), (0.7, signal.SIGTERM))
"""As shares of the calls that the command makes when nobody interrupts it."""
TRIES = 5
"""What is raised while Python closes a generator or runs a finalizer is dropped by Python; a few calls later it is not."""
ENDINGS = {signal.SIGINT: (130, "interrupted"), signal.SIGTERM: (143, "ended by SIGTERM")}
COMMANDS: dict[str, list[str]] = {
    "import": ["import", "source/pairs.csv", "made", "--valid-share", "0.2", "--build-tokenizer", "40"],
    "init": ["init", "dual_encoder", "data", "-o", "made.yaml"],
    "migrate": ["migrate", "finetune.sh", "--ranks", "1", "-o", "made.yaml"],
    "plan": ["plan", "config.yaml"],
    "verify": ["verify", "config.yaml"],
    "verify_resume": ["verify", "run", "--resume"],
    "find-lr": ["find-lr", "config.yaml", "--steps", "20", "--output", "made"],
    "report": ["report", "run", "other", "--output", "made.html"],
    "evaluate": ["evaluate", "run", "--predictions", "made.csv"],
    "bench": ["bench", "config.yaml", "--warmup", "1", "--steps", "1", "--rounds", "1"],
    "profile": ["profile", "config.yaml", "--warmup", "1", "--steps", "1", "--trace", "made.json.gz"],
    "replay": ["replay", "run", "--step", "5"],
    "search": [
        "search",
        "run",
        "--split",
        "valid",
        "--query",
        "红色",
        "--index",
        "made",
        "--contact-sheet",
        "made.png",
    ],
    "embed": ["embed", "run", "made.safetensors", "--split", "valid"],
    "export": ["export", "run", "made"],
}
PROGRESS = {
    "import": "train: ",
    "verify": "reference step: 5 of 5, ",
    "verify_resume": "steps: 3 of 3, ",
    "find-lr": "range test, all towers: ",
    "evaluate": "evaluating valid: ",
    "bench": "training steps: 2 of 2, ",
    "profile": "steps: 2 of 2, ",
    "replay": "steps: 5 of 5, ",
    "search": "images: 8 of 8, ",
    "embed": "texts: 16 of 16, ",
}
"""A line of each command that may take long, where there is no terminal."""
TAKEN_UP = {"embed": ".made.safetensors", "search": "made/"}
"""What the next start of a command goes on with: how such paths begin."""
SCRIPT = "python cn_clip/training/main.py --train-data=data --val-data=data --batch-size=8 --max-epochs=1"
Ask = Callable[..., dict[str, Any]]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ask() -> Iterator[Ask]:
    """ask(argv, folder, signal, at): what became of the command."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "COLUMNS": "100"}
    command = [sys.executable, "-W", "ignore", "-m", "tests.interrupting"]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        stdin, stdout = server.stdin, server.stdout
        assert stdin is not None
        assert stdout is not None

        def of(argv: list[str], folder: Path, number: int | None = None, at: int | None = None) -> dict[str, Any]:
            request = {"argv": argv, "folder": str(folder), "signal": number, "at": at}
            stdin.write(json.dumps(request) + "\n")
            stdin.flush()
            answer: dict[str, Any] = json.loads(stdout.readline())
            return answer

        yield of
        stdin.close()


@pytest.fixture(scope="module")
def prepared(ask: Ask, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a source, a dataset, a configuration, a script of another trainer, and two runs of six steps."""
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "tmp").mkdir()
    write_pairs(folder / "source")
    make_dataset(folder / "data")
    values = base_config(Path("data")) | {"num_epochs": None, "max_steps": 6}
    (folder / "config.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    (folder / "finetune.sh").write_text(f"{SCRIPT}\n", encoding="utf-8")
    done = ask(["train", "config.yaml"], folder)
    assert done["code"] == 0, done["err"]
    shutil.copytree(folder / "run", folder / "other", symlinks=True)
    return folder


def files(folder: Path) -> dict[str, int]:
    """Times of change by path."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def made_by(name: str, ask: Ask, folder: Path, *signal_at: int) -> tuple[dict[str, Any], set[str]]:
    """What the command said, and which files it made or changed, but for those that its next start goes on with."""
    before = files(folder)
    found = ask(COMMANDS[name], folder, *signal_at)
    changed = {path for path, time in files(folder).items() if before.get(path) != time}
    return found, {path for path in changed if not (name in TAKEN_UP and path.startswith(TAKEN_UP[name]))}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_ends_cleanly(name: str, ask: Ask, prepared: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(prepared, whole, symlinks=True)
    undisturbed, made = made_by(name, ask, whole)
    assert undisturbed["code"] == 0, undisturbed
    assert PROGRESS.get(name, "") in undisturbed["err"], undisturbed
    for moment, number in MOMENTS:
        at = int(moment * undisturbed["calls"])
        for call in range(at, at + TRIES):
            folder = tmp_path / f"at_{moment}_{call}"
            shutil.copytree(prepared, folder, symlinks=True)
            found, left = made_by(name, ask, folder, number, call)
            if "Exception ignored in" not in found["err"]:
                break
        code, words = ENDINGS[number]
        said = (name, moment, found)
        assert found["code"] == code, said
        assert "Traceback" not in found["err"], said
        assert found["err"].splitlines()[-1] == f"accel-train: {words}", said
        assert left in (set(), made), said
        assert not list((folder / "tmp").iterdir()), said
        assert not found["leaves_a_process"], said


@pytest.mark.parametrize("name", ["verify", "verify_resume", "replay"])
def test_progress_is_silent_with_quiet(name: str, ask: Ask, prepared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(prepared, folder, symlinks=True)
    done = ask([*COMMANDS[name], "--quiet"], folder)
    assert done["code"] == 0, done
    assert PROGRESS[name] not in done["err"]
