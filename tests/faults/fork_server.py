"""Starts ranks as forks of one process that has already imported everything: real processes, 0.1 s instead of 6 s each.

Reads one JSON request a line on stdin, answers on stdout: `{"started": [pid, ...]}` for a request, and `{"pid": ...,
"exit_code": ...}` whenever a rank ends. Ranks find each other as under torchrun, by RANK, WORLD_SIZE and MASTER_PORT.
"""

import gc
import json
import os
import resource
import select
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "TORCHINDUCTOR_COMPILE_THREADS": "1"}

# What a run would import while it starts.
import deepspeed.module_inject.auto_ep_layer
import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401
import torch.distributed.algorithms.ddp_comm_hooks  # noqa: F401
import transformers.models.chinese_clip.modeling_chinese_clip  # noqa: F401
from PIL import Image

import accel_train.checkpoint.folders
import accel_train.engine.rendezvous
import accel_train.tools.evaluation
import accel_train.tools.export
import accel_train.train
from accel_train.checkpoint.background import HostCopy
from accel_train.cli import main
from tests.faults.built_in import run_each
from tests.faults.network import move_to_host
from tests.faults.odd_rank import ODDITIES

DEFAULTS = {
    "world_size": 1,
    "folder": None,
    "hosts": None,
    "roll_call_seconds": 0.0,
    "largest_file": 0,
    "slow_writes": 0.0,
    "record_samples": None,
    "poison": None,
    "step_seconds": 0.0,
    "built_in": [],
    "odd": "",
}
"""What a request may leave out. Without a folder, a rank runs where its output goes."""


def run_rank(request: dict[str, Any], rank: int) -> int:
    """The life of one rank, up to its exit code."""
    output = os.open(Path(request["output"]) / f"rank{rank}.out", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(request["folder"] or request["output"])
    if request["world_size"] > 1:
        size = str(request["world_size"])
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(request["port"])}
    if request["hosts"]:
        os.environ |= {"MASTER_ADDR": request["address"]}
        move_to_host(request["hosts"][rank])
    if request["roll_call_seconds"]:
        accel_train.engine.rendezvous.ROLL_CALL_SECONDS = request["roll_call_seconds"]
    if request["largest_file"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["largest_file"], resource.RLIM_INFINITY))
    if request["slow_writes"]:
        slow_down_writes(request["slow_writes"])
    if request["record_samples"]:
        record_samples(Path(request["record_samples"]))
    if request["poison"]:
        poison(request["poison"])
    if request["step_seconds"]:
        slow_down_steps(request["step_seconds"])
    if request["built_in"]:
        return run_each(request["built_in"], lambda: main(request["argv"]))
    if request["odd"] and rank == request["world_size"] - 1:
        ODDITIES[request["odd"]](request)
    return main(request["argv"])


def slow_down_writes(seconds: float) -> None:
    """A disk so slow that a kill can meet every moment of a checkpoint: each fsync, rename and removal takes a while.

    So does the copy that a save in the background makes first, longer than the gradients of a step.
    """

    def slowly(action: Any) -> Any:
        def acted(*args: Any, **options: Any) -> Any:
            time.sleep(seconds)
            return action(*args, **options)

        return acted

    os.fsync = slowly(os.fsync)
    Path.rename = slowly(Path.rename)  # type: ignore[method-assign]
    HostCopy.finish = slowly(HostCopy.finish)  # type: ignore[method-assign]
    accel_train.checkpoint.folders.point = slowly(accel_train.checkpoint.folders.point)


def slow_down_steps(seconds: float) -> None:
    """Gives a test the time to do something between two steps."""
    step = accel_train.train.take_step

    def slowly(*args: Any) -> Any:
        time.sleep(seconds)
        return step(*args)

    accel_train.train.take_step = slowly


def poison(where: dict[str, Any]) -> None:
    """On the last rank, what a module gives is not a number in some steps, until the run has gone back `rollbacks` times.

    Without a module nothing is wrong with these steps, but they make no update.
    """
    step = accel_train.train.take_step

    def poisoned(run: Any, batch: Any, counts: list[int]) -> Any:
        hit = run.state.step + 1 in where["steps"] and run.engine.rank == run.engine.world_size - 1
        if not hit or len(run.state.rollbacks) >= where["rollbacks"]:
            return step(run, batch, counts)
        if where["module"] is None:
            found = accel_train.train.find_gradients(run, batch, counts)
            run.engine.optimizer.zero_grad()
            return found
        module = run.engine.bare_model().get_submodule(where["module"])
        handle = module.register_forward_hook(lambda module, inputs, output: output * float("nan"))
        try:
            return step(run, batch, counts)
        finally:
            handle.remove()

    accel_train.train.take_step = poisoned


def record_samples(path: Path) -> None:
    """Appends `step position sample_id ...` for every micro-batch that is trained on."""
    step = accel_train.train.take_step

    def recorded(run: Any, batch: Any, counts: list[int]) -> Any:
        with path.open("a") as file:
            for position, columns in zip(batch.positions, batch.micro_batches, strict=True):
                file.write(f"{batch.step} {position} {' '.join(map(str, columns['sample_id'].tolist()))}\n")
        return step(run, batch, counts)

    accel_train.train.take_step = recorded


def fork_ranks(request: dict[str, Any]) -> list[int]:
    pids = []
    for rank in range(request["world_size"]):
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            code = 1
            try:
                code = run_rank(request, rank)
                sys.stdout.flush()
            except Exception:
                traceback.print_exc()
                raise
            finally:
                sys.stderr.flush()
                os._exit(code)
        pids.append(pid)
    return pids


def answer(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


def serve() -> None:
    ended, wake_up = os.pipe()
    os.set_blocking(wake_up, False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(wake_up)
    Image.preinit()
    gc.collect()
    gc.freeze()  # else every rank would walk through, and so copy, all that was imported: half of its time
    answer({"ready": True})
    while True:
        ready, _, _ = select.select([0, ended], [], [])
        if ended in ready:
            os.read(ended, 4096)
            while (waited := wait_for_one()) is not None:
                answer({"pid": waited[0], "exit_code": os.waitstatus_to_exitcode(waited[1])})
        if 0 in ready:
            line = sys.stdin.readline()
            if not line:
                return
            answer({"started": fork_ranks(DEFAULTS | json.loads(line))})


def wait_for_one() -> tuple[int, int] | None:
    try:
        pid, status = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return None
    return (pid, status) if pid else None


if __name__ == "__main__":
    serve()
