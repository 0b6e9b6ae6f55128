"""torchrun starts ranks again: from the newest checkpoint, with fewer of them too, to the metrics of a run left alone."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import free_port


def start_agent(run: Any, name: str, port: int) -> subprocess.Popen[bytes]:
    """torchrun as one of one or two hosts, with a rank of its own.

    A host that joins while another has begun alone makes it begin again, and torchrun's two rounds may then wait for each
    other until both fail; the last call is long enough for the second host to come in time.
    """
    quick = "last_call_timeout=8,keep_alive_interval=1,keep_alive_max_attempt=3"
    command = ["--nnodes", "1:2", "--nproc-per-node", "1", "--max-restarts", "3", "--rdzv-backend", "c10d"]
    command += ["--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "elastic", "--local-addr", "127.0.0.1"]
    train = ["-m", "accel_train", "train", "config.yaml", *run.overrides, "--inject", "kill:rank=0@5,slow:rank=0:0.5s"]
    with (run.folder / name).open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *command, "--rdzv-conf", quick, *train],
            cwd=run.folder,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )


def wait_for(condition: Callable[[], bool], agents: list[subprocess.Popen[bytes]], timeout: float) -> bool:
    limit = time.monotonic() + timeout
    while time.monotonic() < limit and not (met := condition()) and all(agent.poll() is None for agent in agents):
        time.sleep(0.05)
    return met


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def kill_with_ranks(agent: subprocess.Popen[bytes]) -> None:
    """A host that loses its power. torchrun gives each rank a session of its own."""
    ranks = [int(pid) for pid in Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()]
    for pid in (agent.pid, *ranks):
        os.kill(pid, signal.SIGKILL)
    agent.wait()


@pytest.mark.timeout(400)
def test_a_killed_rank_comes_back_and_a_lost_host_does_not(
    experiment: Callable[..., Any], never_killed: Callable[[str, int], Any]
) -> None:
    run = experiment("engine=ddp")
    run.write_config()
    port = free_port()
    agents = [start_agent(run, "agent0.out", port)]
    log = run.run_dir / "run.log"
    try:
        # Whichever agent comes first keeps the store of all: the host that is not lost.
        assert wait_for(lambda: answers(port), agents, 100), said(run)
        agents.append(start_agent(run, "agent1.out", port))
        both = wait_for(lambda: 9 in run.steps_on_disk(), agents, 200)
        assert both, said(run)
        resumed = log.read_text()
        assert "resuming from" in resumed and "at step 3 of 16" in resumed, said(run)
        kill_with_ranks(agents[1])
        assert agents[0].wait(150) == 0, said(run)
    finally:
        for agent in agents:
            if agent.poll() is None:
                kill_with_ranks(agent)
    assert log.read_text().count("2 ranks x") == 2, "with both hosts, before and after the kill"
    assert "on 1 x cpu" in log.read_text(), said(run)
    ours, theirs = run.losses(), never_killed("ddp", 2).losses()
    assert ours[:9] == theirs[:9], "on two ranks, bit for bit"
    assert ours == pytest.approx(theirs, abs=1e-5)


def said(run: Any) -> str:
    return "\n".join(f"--- {file.name}\n{file.read_text()[-6000:]}" for file in sorted(run.folder.glob("agent*.out")))
