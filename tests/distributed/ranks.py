"""Starts the processes of one job by hand, as a launcher would, so that the exit code of every rank can be seen."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
LAUNCHER_SETTINGS = ("ACCELERATE_", "FSDP_", "DS_", "TORCHELASTIC_")
OF_A_LAUNCHER = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}


@dataclass(frozen=True, slots=True)
class Finished:
    """One rank's end. `output` is its standard output and error together. A rank that ran out of time was killed: -9."""

    exit_code: int
    output: str


def clean_environment() -> dict[str, str]:
    """Without what another launcher left behind; CPU alone, one thread for each rank."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(LAUNCHER_SETTINGS) and name not in OF_A_LAUNCHER
    }
    return kept | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def run_ranks(world_size: int, *arguments: str, timeout: float = 480, **environment: str) -> list[Finished]:
    """`python ARGUMENTS` on every rank, from the repository's root. One rank alone gets no launcher's variables."""
    port = str(_free_port())
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"rank{rank}" for rank in range(world_size)]
        processes = []
        for rank, file in enumerate(files):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            job = {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)}
            address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            variables = (place | job | address if world_size > 1 else {}) | environment
            with file.open("wb") as output:
                processes.append(
                    subprocess.Popen(
                        [sys.executable, *arguments],
                        cwd=ROOT,
                        env=clean_environment() | variables,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                    )
                )
        end = time.monotonic() + timeout
        for process in processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0, end - time.monotonic()))
        for process in processes:
            process.kill()
            process.wait()
        finished = [
            Finished(process.returncode, file.read_text(encoding="utf-8", errors="replace"))
            for process, file in zip(processes, files, strict=True)
        ]
    if any(rank.exit_code for rank in finished):  # pytest shows this where the test fails
        print("\n".join(f"--- rank {number}\n{rank.output[-3000:]}" for number, rank in enumerate(finished)))
    return finished


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
