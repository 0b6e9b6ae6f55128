import errno
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from accel_train.cli import main
from accel_train.commands.sweep import sweep
from accel_train.config.load import load_config
from accel_train.errors import CheckFailed, UserError
from accel_train.tools.sweep import command
from accel_train.tools.sweep.local_workers import shares_of_devices, visible_devices
from accel_train.tools.sweep.settings import load_sweep
from tests.tools.sweep.conftest import CONFIG, ROOT, TOY

RATE = "optimizer.towers.text.lr=log 1e-4 1e-2"
SHORT = [
    "max_steps=2",
    "num_epochs=null",
    "data.image_size=32",
    "data.global_batch_size=16",
    "data.micro_batch_size=16",
    "data.num_workers=0",
    "evaluation.evaluate_every=2 steps",
    "evaluation.at_start=false",
    "checkpoint.save_every=null",
    "advice=off",
]


def commands(path: Path) -> list[list[str]]:
    text = re.sub(r"\\\n", " ", path.read_text(encoding="utf-8"))
    lines = [line.lstrip("# ") for line in text.splitlines() if re.match(r"(#   )?accel-train sweep", line)]
    return [shlex.split(line, comments=True)[2:] for line in lines]


SHOWN = [words for page in ("docs/sweep.md", "examples/sweeps/scorer.yaml") for words in commands(ROOT / page)]


def test_there_are_commands_to_try():
    assert len(SHOWN) >= 5


@pytest.mark.parametrize("words", SHOWN, ids=" ".join)
def test_what_the_page_shows_is_a_sweep(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    called = []
    monkeypatch.setattr(command, "sweep_command", lambda path, **given: called.append((path, given)))
    sweep(words)
    ((path, given),) = called
    load_sweep(path, given["overrides"], given["options"], given["search"])


@pytest.mark.slow
def test_a_real_run_is_a_trial_and_best_yaml_is_one_that_train_takes(tmp_path, capsys):
    folder = tmp_path / "sweep"
    arguments = ["sweep", CONFIG, *SHORT, "--trials", "1", "--sweep-dir", str(folder), "--search", RATE, "--json"]
    assert main(arguments) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert "trial 0 is complete" in printed.err
    (trial,) = found["trials"]
    rows = [json.loads(line) for line in (folder / "trials" / "0000" / "metrics.jsonl").read_text().splitlines()]
    scores = [row[found["score"]] for row in rows if row["split"] == "valid"]
    assert len(scores) == trial["evaluations"] == 1
    assert trial["score"] == max(scores) == found["best"]["score"]
    config = load_config(found["best_config"])
    assert config.max_steps == 2 and config.run_dir == str(folder / "best")
    assert (folder / "trials" / "0000" / "checkpoints" / "best").exists()


@pytest.mark.slow
def test_local_workers_share_a_sweep(tmp_path, capfd):
    arguments = ["sweep", CONFIG, "--trials", "4", "--sweep-dir", str(tmp_path / "sweep"), "--search", RATE]
    assert main([*arguments, "--launch", TOY, "--pruner", "none", "--workers", "2"]) == 0
    printed = capfd.readouterr().out
    assert printed.count("is complete") == 4
    assert printed.count("written: ") == 1  # by the process that started the workers


def test_mistakes_are_said_before_anything_is_made(tmp_path, capsys):
    folder = tmp_path / "sweep"
    assert main(["sweep", CONFIG, "--search", "optimizer.towers.txt.lr=log 1 2", "--sweep-dir", str(folder)]) == 2
    assert "has no item 'txt'" in capsys.readouterr().err
    assert main(["sweep", CONFIG, "--search", RATE, "--trials", "0"]) == 2
    assert main(["sweep", CONFIG, "--search", RATE, "--score", "recall@9", "--sweep-dir", str(folder)]) == 2
    assert "is not a score of the task contrastive" in capsys.readouterr().err
    assert not folder.exists()


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"sweep needs optuna: pip install 'accel_train\[sweep\]'"):
        sweep([CONFIG, "--search", RATE])


def test_a_full_disk_is_said(monkeypatch, tmp_path):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("accel_train.tools.sweep.worker.work", full)
    with pytest.raises(CheckFailed, match="No space left on device"):
        sweep([CONFIG, "--search", RATE, "--sweep-dir", str(tmp_path)])


def test_a_launcher_around_the_sweep_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="without a launcher"):
        sweep([CONFIG, "--search", RATE])


def test_help_and_mistakes_import_neither_torch_nor_optuna():
    program = (
        "import sys; from accel_train.cli import main; main(['sweep', sys.argv[1], '--search', 'x.y=int 1 2']); "
        "sys.exit(bool({'torch', 'optuna', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program, CONFIG], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("devices", "workers", "shares"),
    [
        ([], 3, [None, None, None]),
        (["0", "1", "2", "3"], 2, ["0,1", "2,3"]),
        (["GPU-a", "GPU-b"], 2, ["GPU-a", "GPU-b"]),
    ],
)
def test_devices_are_shared_evenly(devices, workers, shares):
    assert shares_of_devices(devices, workers) == shares


@pytest.mark.parametrize("devices", [["0"], ["0", "1", "2"]])
def test_devices_that_cannot_be_shared_evenly_are_refused(devices):
    with pytest.raises(UserError, match="can't be shared evenly"):
        shares_of_devices(devices, 2)


def test_visible_devices_are_those_of_the_environment(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, 5")
    assert visible_devices() == ["2", "5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_devices() == []
