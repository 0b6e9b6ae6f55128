"""A run over two hosts whose cable is cut in the middle of a step: both ends say so, and the run goes on afterwards."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.faults.network import TwoHosts

SECONDS = 2.5


@pytest.fixture
def hosts() -> Iterator[TwoHosts]:
    pair = TwoHosts((f"at{os.getpid()}a", f"at{os.getpid()}b"))
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need root and iproute2")
    try:
        pair.connect()
    except subprocess.CalledProcessError as refusal:
        pair.remove()
        pytest.skip(f"no network namespaces here: {refusal.stderr.decode().strip()}")
    yield pair
    pair.remove()


def test_a_cut_cable_ends_both_and_the_run_goes_on(
    experiment: Callable[..., Any], never_killed: Callable[[str, int], Any], hosts: TwoHosts
) -> None:
    run = experiment("engine=ddp", f"hang_minutes={SECONDS / 60}")
    running = run.start(ranks=2, step_seconds=0.1, hosts=hosts)
    run.wait_for(lambda: run.step() >= 7, running)
    hosts.cut()
    began = time.monotonic()
    assert running.wait(timeout=40) == [1, 1], running.output
    assert time.monotonic() - began < 6 * SECONDS
    assert "Traceback" not in running.output
    assert "on 2 hosts share configuration" in running.output
    log = (run.run_dir / "run.log").read_text()
    assert "nothing has moved for" in log
    for rank, host in enumerate(hosts.names):
        assert f"rank {rank} on {host}: " in log
        stacks = run.run_dir / f"hang_rank_{rank:05d}.txt"
        assert stacks.exists() or f"rank {rank} lost its connection" in running.output
    hosts.mend()
    run.finish(ranks=2, hosts=hosts)
    assert run.metrics() == never_killed("ddp", 2).metrics()


def test_a_host_that_can_not_be_reached_is_named(experiment: Callable[..., Any], hosts: TwoHosts) -> None:
    hosts.cut()
    run = experiment("engine=ddp")
    output = run.fail(code=2, ranks=2, hosts=hosts, roll_call_seconds=2.0)
    assert f"1 of 2 ranks did not come within 2 s: rank 1. There came rank 0 on {hosts.names[0]}." in output
    assert f"Rank 1 on {hosts.names[1]} found nobody at {hosts.ADDRESSES[0]}:" in output
