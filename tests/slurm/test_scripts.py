import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_shellcheck_finds_nothing(packages: None) -> None:
    scripts = [*ROOT.glob("launch/*.sbatch"), *ROOT.glob("launch/*.sh"), *ROOT.glob("tests/slurm/*.sh")]
    assert len(scripts) >= 5
    done = subprocess.run(["shellcheck", *scripts], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
