"""Several workers on this machine, each a process with its share of the GPUs."""

import os
import subprocess
import sys
import time

import torch

from accel_train.errors import CheckFailed, Stopped, UserError
from accel_train.stopping import StopRequest
from accel_train.tools.sweep.settings import Sweep

POLL_SECONDS = 0.5


def run_workers(sweep: Sweep, argv: list[str], workers: int, *, as_json: bool) -> None:
    """Runs the workers to their end and passes signals on. Raises Stopped, and CheckFailed if one of them ended badly."""
    devices = shares_of_devices(visible_devices(), workers)
    command = [sys.executable, "-m", "accel_train", "sweep", *argv, "--workers", "1", "--one-of-several"]
    stop = StopRequest()
    with stop.listening():
        processes = [
            subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr if as_json else None,
                env=os.environ | ({} if share is None else {"CUDA_VISIBLE_DEVICES": share}),
                start_new_session=True,  # Ctrl-C reaches this process alone, which passes it on once
            )
            for share in devices
        ]
        stop.started.update(process.pid for process in processes)
        passed_on = False
        while any(process.poll() is None for process in processes):
            if stop.signal is not None and not passed_on:
                passed_on = True
                for process in processes:
                    process.terminate()
            time.sleep(POLL_SECONDS)
    codes = [process.returncode for process in processes]
    if bad := {code for code in codes if code not in (0, Stopped.exit_code)}:
        raise CheckFailed(
            f"{sum(code in bad for code in codes)} of {workers} workers ended with exit codes {sorted(bad)}."
        )
    if Stopped.exit_code in codes:
        raise Stopped(
            f"the sweep was asked to stop; its trials were saved, and the same command goes on with {sweep.folder}."
        )


def visible_devices() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    return [str(number) for number in range(torch.cuda.device_count())]


def shares_of_devices(devices: list[str], workers: int) -> list[str | None]:
    """For each worker its value of CUDA_VISIBLE_DEVICES; None where there are no GPUs. Raises UserError."""
    if not devices:
        return [None] * workers
    if len(devices) % workers:
        raise UserError(
            f"--workers: {len(devices)} GPUs can't be shared evenly among {workers} workers. Choose another number, or set "
            "CUDA_VISIBLE_DEVICES."
        )
    each = len(devices) // workers
    return [",".join(devices[start : start + each]) for start in range(0, len(devices), each)]
