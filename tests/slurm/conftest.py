"""A Slurm of two virtual nodes, one for the whole session, with the file system that its nodes share."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.faults.conftest import ForkServer, base_config, make_dataset
from tests.slurm.page import Page

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
SHARED = "/mnt"
"""Where the nodes see the shared folder."""
NAMESPACES = ["unshare", "--net", "--pid", "--mount", "--uts", "--cgroup", "--fork", "true"]
PATIENCE = 240.0
"""Seconds for a job to start, or to reach a step, on a busy machine."""


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == HERE:
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.distributed)
            item.add_marker(pytest.mark.xdist_group("faults"))


@dataclass(frozen=True)
class Cluster:
    """Commands on its login node, and what became of its jobs."""

    folder: Path

    @property
    def shared(self) -> Path:
        """The shared folder as this process sees it."""
        return self.folder / "shared"

    def control(self, *arguments: str) -> None:
        owned = {**os.environ, "OWNER": str(os.getpid())}
        subprocess.run(["bash", str(HERE / "cluster.sh"), *arguments], env=owned, check=True, timeout=120)

    def run(self, line: str) -> str:
        """A shell command line in the shared folder. Returns its standard output."""
        command = ["bash", str(HERE / "cluster.sh"), "run", str(self.folder), "bash", "-c", f"cd {SHARED}; {line}"]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, f"{line}\nexit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def about(self, job: str) -> dict[str, str]:
        """What Slurm says of a job, by key."""
        words = self.run(f"scontrol show job {job}").split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_for(self, condition: Callable[[], bool], what: str, *outputs: Path) -> None:
        limit = time.monotonic() + PATIENCE
        while not condition():
            said = "".join(f"--- {path}\n{path.read_text()[-6000:]}\n" for path in outputs if path.exists())
            assert time.monotonic() < limit, f"waited {PATIENCE} s for {what}\n{said}\n{self.run('squeue')}"
            time.sleep(0.2)

    def wait_for_state(self, job: str, *states: str, output: Path) -> None:
        self.wait_for(lambda: self.about(job)["JobState"] in states, f"job {job} to be {' or '.join(states)}", output)


def environment() -> dict[str, str]:
    """What a user's login shell would have."""
    kept = {name: os.environ[name] for name in ("HOME", "LANG", "TERM") if name in os.environ}
    programs = f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return kept | {
        "PATH": programs,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


@pytest.fixture(scope="session")
def packages() -> None:
    """Slurm and shellcheck are installed. Where they can't be, CI fails, and other machines skip the tests."""
    if all(shutil.which(name, path="/usr/bin:/usr/sbin") for name in ("slurmctld", "slurmd", "munged", "shellcheck")):
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        pytest.skip("Slurm and shellcheck are not installed, which takes root and apt-get")
    installed = subprocess.run(["bash", str(HERE / "install.sh")], capture_output=True, text=True, check=False)
    if installed.returncode != 0 and "CI" not in os.environ:
        pytest.skip(f"Slurm can't be installed: {installed.stderr.strip()[-300:]}")
    assert installed.returncode == 0, installed.stderr


@pytest.fixture(scope="session")
def cluster(packages: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if os.geteuid() != 0:
        pytest.skip("a Slurm cluster of one's own takes root")
    if subprocess.run(NAMESPACES, capture_output=True, check=False).returncode != 0:
        pytest.skip("a Slurm cluster of one's own takes Linux namespaces, which root can't make here")
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    cluster.control("start", str(cluster.folder), "2")
    make_dataset(cluster.shared / "dataset")
    (cluster.shared / "launch").symlink_to(ROOT / "launch")
    yield cluster
    cluster.control("stop", str(cluster.folder))


def experiment(run_dir: str, **changes: Any) -> dict[str, Any]:
    """The configuration of a tiny run that goes on until somebody stops it."""
    return base_config(Path("dataset")) | {
        "run_dir": run_dir,
        "num_epochs": None,
        "max_steps": 100_000,
        "schedule": {"name": "constant", "warmup_steps": 4},
        "evaluation": {"evaluate_every": None, "at_start": False},
        "checkpoint": {"save_every": None},
        **changes,
    }


@pytest.fixture
def write_config(cluster: Cluster) -> Callable[..., Path]:
    """write_config("name.yaml", run_dir, **changes): a configuration in the shared folder; returns the run's folder."""

    def write(name: str, run_dir: str, **changes: Any) -> Path:
        values = experiment(run_dir, **changes)
        (cluster.shared / name).write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
        return cluster.shared / run_dir

    return write


@pytest.fixture(scope="session")
def server() -> Iterator[Callable[[], ForkServer]]:
    """server(): starts ranks without Slurm. The first call takes some seconds."""
    running: list[ForkServer] = []

    def started() -> ForkServer:
        if not running:
            running.append(ForkServer())
        return running[0]

    yield started
    for one in running:
        one.close()


@pytest.fixture(scope="session")
def page() -> Page:
    return Page()
