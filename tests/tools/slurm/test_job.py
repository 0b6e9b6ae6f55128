import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from accel_train import cli
from accel_train.tools.slurm import checks

QUICKSTART = str(Path(__file__).parents[3] / "configs" / "quickstart.yaml")
TWO_NODES = ["slurm", QUICKSTART, "data.micro_batch_size=8", "--nodes", "2"]
SINFO = 'echo "main*|2-00:00:00|4"'
SBATCH = 'cat >>given; echo "$*" >>asked; [ "$1" = --test-only ] || echo "12;cluster"'

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """programs(sinfo=text, sbatch=text): exactly these programs of Slurm, as shell text, in a folder of one's own."""
    monkeypatch.setattr(checks, "OF_ONE_NODE", ("/dev/shm",))
    monkeypatch.delenv("TMPDIR", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bin").mkdir()
    for name in ("bash", "cat"):
        (tmp_path / "bin" / name).symlink_to(f"/bin/{name}")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))

    def put(**texts: str) -> None:
        for name, text in texts.items():
            program = tmp_path / "bin" / name
            program.write_text(f"#!/bin/bash\n{text}\n")
            program.chmod(program.stat().st_mode | stat.S_IXUSR)

    return put


@pytest.fixture
def run(programs: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> Run:
    def start(*arguments: str) -> tuple[int, str, str]:
        """Exit code, standard output and standard error of the command."""
        code = cli.main([*TWO_NODES, *arguments])
        return code, *capsys.readouterr()

    return start


def test_prints_a_script_for_the_configuration(run: Run, programs: Callable[..., None], tmp_path: Path) -> None:
    programs(sinfo=SINFO, sbatch=SBATCH)
    code, script, errors = run("--gpus", "2", "run_dir=runs/it", "data.num_workers=2", "--account", "me")
    assert code == 0, errors
    for line in (
        "#SBATCH --job-name=it",
        "#SBATCH --nodes=2",
        "#SBATCH --gpus-per-node=2",
        "#SBATCH --cpus-per-task=6",
        "#SBATCH --account=me",
        f"#SBATCH --chdir={tmp_path}",
        "#SBATCH --output=runs/it/slurm-%j.out",
        f"config={QUICKSTART}",
    ):
        assert line in script.splitlines(), line
    assert "\nrun_dir=runs/it " in script and "\nchanges=(data.micro_batch_size=8 data.num_workers=2) " in script
    assert "launch/ddp.yaml\n" in script
    assert (tmp_path / "asked").read_text() == "--test-only\n"
    assert (tmp_path / "given").read_text() == script, "Slurm judged the script that is printed"


def test_ranks_on_cpu_cores_take_no_gpus(run: Run, programs: Callable[..., None]) -> None:
    programs(sinfo=SINFO, sbatch=SBATCH)
    code, script, _ = run("--cpu-ranks", "4", "--cpus", "5", "--sbatch=--qos=low")
    assert code == 0
    assert "#SBATCH --gpus" not in script and "launch/cpu.yaml\n" in script
    assert {"#SBATCH --cpus-per-task=5", "#SBATCH --qos=low"} < set(script.splitlines())


def test_submits_and_says_the_number(run: Run, programs: Callable[..., None], tmp_path: Path) -> None:
    programs(sinfo=SINFO, sbatch=SBATCH)
    code, said, errors = run("--gpus", "1", "--after", "7", "--submit", "run_dir=runs/it")
    assert (code, said) == (0, "12\n"), errors
    assert "submitted job 12: 2 ranks on 2 nodes" in errors
    script = (tmp_path / "runs" / "it" / "train.sbatch").read_text()
    assert {"#SBATCH --dependency=afterok:7", "#SBATCH --kill-on-invalid-dep=yes"} < set(script.splitlines())
    assert (tmp_path / "asked").read_text().splitlines()[-1] == "--parsable runs/it/train.sbatch"


def test_json(run: Run, programs: Callable[..., None]) -> None:
    programs(sinfo=SINFO, sbatch=SBATCH)
    code, said, _ = run("--gpus", "1", "--submit", "--json", "run_dir=runs/it")
    found = json.loads(said)
    assert code == 0
    assert (found["job"], found["ranks"], found["run_dir"]) == ("12", 2, "runs/it")
    assert found["micro_batches"] * 2 * 8 == 128
    assert found["script"].startswith("#!/usr/bin/env bash")


def test_away_from_a_cluster_the_script_comes_with_a_warning(run: Run, programs: Callable[..., None]) -> None:
    code, script, errors = run("--gpus", "1")
    assert code == 0 and script
    assert "not checked, since sinfo is not installed here" in errors


def test_what_slurm_would_say_today_is_a_warning(run: Run, programs: Callable[..., None]) -> None:
    """It says no to nodes that are drained for an hour, too."""
    programs(sinfo=SINFO, sbatch="echo 'Requested node configuration is not available' >&2; exit 1")
    code, script, errors = run("--gpus", "1")
    assert code == 0 and script
    assert "Slurm could not run this job as it is now: Requested node configuration is not available." in errors


@pytest.mark.parametrize(
    ("arguments", "programs_there", "words"),
    [
        (["--gpus", "3"], {"sinfo": SINFO, "sbatch": SBATCH}, "micro_batch_size × ranks"),
        (["--gpus", "1", "--time", "soon"], {"sinfo": SINFO, "sbatch": SBATCH}, "--time: found 'soon'"),
        (["--gpus", "1", "--time", "9-0"], {"sinfo": SINFO, "sbatch": SBATCH}, "than partition main allows"),
        (["--gpus", "1", "--partition", "x"], {"sinfo": SINFO, "sbatch": SBATCH}, "there is no 'x'"),
        (["--gpus", "1", "run_dir=/dev/shm/run"], {"sinfo": SINFO, "sbatch": SBATCH}, "is below /dev/shm"),
        (["--gpus", "1", "--submit"], {}, "--submit: sbatch is not installed here"),
        (["--gpus", "1", "--after", "x"], {}, "--after: found 'x'"),
        (["--gpus", "1", "--cpu-ranks", "1"], {}, "not allowed with argument"),
        ([], {}, "one of the arguments --gpus --cpu-ranks is required"),
        (["--gpus", "1", "seed=x"], {}, "seed: found 'x'"),
        (["--gpus", "1"], {"sinfo": "echo down >&2; exit 1"}, "`sinfo -h -o %P|%l|%D` failed: down"),
        (
            ["--gpus", "1", "--submit"],
            {"sbatch": "echo 'error: Invalid account' >&2; exit 1"},
            "refuses this job: error: Inv",
        ),
    ],
)
def test_what_can_t_run_is_refused(
    run: Run, programs: Callable[..., None], arguments: list[str], programs_there: dict[str, str], words: str
) -> None:
    programs(**programs_there)
    code, said, errors = run(*arguments)
    assert (code, said) == (2, "")
    assert words in errors
    refused_by_slurm = "refuses this job" in words
    assert Path("runs").exists() == refused_by_slurm
    assert not os.path.exists("asked") or "--parsable" not in Path("asked").read_text()
