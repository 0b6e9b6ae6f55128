"""Completion in real shells, and the answers that it asks the program for."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from accel_train import cli
from accel_train.config.key_names import all_keys
from accel_train.config.tasks import BUILT_IN
from accel_train.tools.completion import keys
from accel_train.tools.completion.candidates import candidates

ROOT = Path(__file__).parents[3]
CONFIG = """task: sequence_classification
optimizer:
  towers:
    - {name: decoder, lr: 1.0e-3, layers: llama}
    - name: head
      lr: 1.0e-3
phases:
  - name: later
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    work = tmp_path / "work"
    (work / "configs").mkdir(parents=True)
    (work / "run.yaml").write_text(CONFIG)
    (work / "read me.txt").write_text("")
    (work / "configs" / "other.yml").write_text("run_dir: x\n")
    monkeypatch.chdir(work)
    return work


def answer(line: str) -> list[str]:
    return candidates(
        line, cli.COMMANDS, {"WORKLOAD": ["scorer", "dual_encoder"], "NAME": ["scorer"], "C": ["best", "latest"]}
    )


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("accel-train tr", ["train"]),
        ("accel-train --v", ["--version"]),
        ("accel-train train ", ["configs/", "run.yaml"]),
        ("accel-train train configs/", ["configs/other.yml"]),
        ("accel-train train --fr", ["--fresh"]),
        ("accel-train train run.yaml data.glo", ["data.global_batch_size="]),
        ("accel-train train --fresh run.yaml data.glo", ["data.global_batch_size="]),
        ("accel-train train run.yaml opt", ["optimizer."]),
        ("accel-train train run.yaml optimizer.towers.", ["optimizer.towers.decoder.", "optimizer.towers.head."]),
        ("accel-train train run.yaml optimizer.towers.head.train", ["optimizer.towers.head.train_last="]),
        ("accel-train train run.yaml engine=ze", ["engine=zero1", "engine=zero2", "engine=zero3"]),
        ("accel-train train run.yaml seed=1 compute.compile=", ["compute.compile=true", "compute.compile=false"]),
        ("accel-train plan run.yaml evaluation.early", ["evaluation.early_stopping=", "evaluation.early_stopping."]),
        ("accel-train train run.yaml data.image", []),  # texts have no images
        ("accel-train train configs/other.yml data.image_s", ["data.image_size=", "data.image_std="]),
        ("accel-train export run out --format ", ["hugging_face", "cn_clip"]),
        ("accel-train export run out --checkpoint b", ["best"]),
        ("accel-train import --task scorer --rat", ["--rating-range"]),
        ("accel-train init s", ["scorer"]),
        ("accel-train evaluate 'read", ["read me.txt"]),
        ("accel-train nothing ", []),
        ("accel-train completion z", ["zsh"]),
    ],
)
def test_candidates(line: str, expected: list[str]) -> None:
    assert answer(line) == expected


def test_every_command_and_option_is_offered() -> None:
    assert {*cli.COMMANDS, "--help", "--version"} == set(answer("accel-train "))
    for name in cli.COMMANDS:
        assert "--quiet" in answer(f"accel-train {name} --"), name


def test_every_key_of_every_task_is_offered() -> None:
    for task, root in BUILT_IN.items():
        offered = keys.keys_of(task)
        everything = list(all_keys(root))
        wanted = {key for key in everything if not any(other.startswith(f"{key}.") for other in everything)}
        assert wanted <= set(offered), task


def test_keys_come_from_the_cache_and_a_stale_one_goes(tmp_path: Path) -> None:
    first = keys.keys_of("scorer")
    path = keys.cache_file()
    assert path.is_file()
    (path.parent / "keys-0.json").write_text("{}")
    path.write_text("damaged")
    assert keys.keys_of("scorer") == first
    assert [other.name for other in path.parent.iterdir()] == [path.name]
    path.write_text(path.read_text().replace("seed", "sown"))
    assert "sown" in keys.keys_of("scorer")


def test_an_answer_is_fast_and_imports_nothing_heavy(folder: Path) -> None:
    """CPU seconds, since the machine may be busy."""
    line = "accel-train train run.yaml data.glo"
    script = (
        "import sys, time; from accel_train.cli import main; main(['completion', '--answer', sys.argv[1]]); "
        "print(sorted({'torch', 'pydantic', 'numpy', 'transformers'} & set(sys.modules)), time.process_time())"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script, line]
    for _ in range(2):
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=True
        )
    found, last = done.stdout.splitlines()
    imported, _, seconds = last.rpartition(" ")
    assert (found, imported) == ("data.global_batch_size=", "[]")
    assert float(seconds) < 0.3


def program(folder: Path) -> dict[str, str]:
    """An environment in which the shell finds the program, as installed."""
    binary = folder / "bin" / "accel-train"
    binary.parent.mkdir()
    binary.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom accel_train.__main__ import run\nrun()\n"
    )
    binary.chmod(0o755)
    return os.environ | {"PATH": f"{binary.parent}:{os.environ['PATH']}", "HOME": str(folder)}


def run_shell(command: list[str], folder: Path, environment: dict[str, str]) -> list[str]:
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("line", "replies"),
    [
        ("accel-train tr", ["train"]),
        ("accel-train train ru", ["run.yaml"]),
        ("accel-train train run.yaml optimizer.towers.head.train", ["optimizer.towers.head.train_last="]),
        ("accel-train train run.yaml engine=zero", ["zero1", "zero2", "zero3"]),
        ("accel-train evaluate rea", ["read\\ me.txt"]),
    ],
)
def test_bash(line: str, replies: list[str], folder: Path) -> None:
    environment = program(folder)
    words = " ".join(f"'{word}'" for word in line.split(" "))
    script = f"""eval "$(accel-train completion bash)"
compopt() {{ :; }}
COMP_LINE='{line}' COMP_POINT={len(line)} COMP_WORDS=({words})
_accel_train
printf '%s\\n' "${{COMPREPLY[@]}}"
complete -p accel-train >&2
"""
    assert run_shell(["bash", "-c", script], folder, environment) == replies


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh(folder: Path) -> None:
    script = """compdef() { :; }
compadd() { print -l -- "$@"; }
source <(accel-train completion zsh)
words=(accel-train train run.yaml optimizer.towers.head.train) CURRENT=4
_accel_train
words=(accel-train tr) CURRENT=2
_accel_train
"""
    found = run_shell(["zsh", "-f", "-c", script], folder, program(folder))
    assert found == ["-S", "", "--", "optimizer.towers.head.train_last=", "--", "train"]


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
def test_fish(folder: Path) -> None:
    script = "accel-train completion fish | source; complete -C 'accel-train train run.yaml engine=zero'"
    assert run_shell(["fish", "-N", "-c", script], folder, program(folder)) == [
        "engine=zero1",
        "engine=zero2",
        "engine=zero3",
    ]


def test_without_a_shell_it_names_those_that_it_knows(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion"]) == 2
    assert "for which shell? One of bash, zsh, fish" in capsys.readouterr().err
