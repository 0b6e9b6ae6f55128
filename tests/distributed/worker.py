"""One rank of a job that goes through several runs: `python -m tests.distributed.worker OUT DATASET RUN ...`.

Each run is a whole training with an engine of its own, named ENGINE/SCENARIO@K. Rank 0 writes OUT/RUN.pt: what was read
from the engine, or the error that ended the run. Beside it lies the run's own directory.
"""

import gc
import hashlib
import os
import sys
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

import torch
import torch.distributed as dist
from accelerate import DeepSpeedPlugin
from accelerate.state import AcceleratorState, GradientState
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from accel_train.config.schema import RunConfig
from accel_train.engine import build
from accel_train.engine.launch import Launch
from accel_train.engine.zero import zero_plugin
from accel_train.errors import CheckFailed, UserError
from accel_train.run import Run
from accel_train.run_log import RunLog
from accel_train.set_up import set_up
from accel_train.stopping import StopRequest
from accel_train.tasks.task import Batch
from accel_train.train import loop
from tests.distributed.readings import signs_of_engine, whole_gradients, whole_weights
from tests.distributed.scenarios import GLOBAL_BATCH, config_of

OVERFLOW_STEP = 1
FAR_TOO_LARGE_A_SCALE = 2.0**24
REDUCE_SCATTER = ("reduce_scatter_single", "reduce_scatter_tensor")
"""What FSDP2 calls since torch 2.13, and before."""


def main() -> NoReturn:
    out, dataset, *runs = sys.argv[1:]
    for name in runs:
        gc.freeze()  # DeepSpeed collects garbage for each engine; neither what was imported nor the last run is any
        result = one_run(Path(out), dataset, name)
        if int(os.environ.get("RANK", 0)) == 0:
            torch.save(result, Path(out) / f"{name}.pt")
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may abort Python's own ending; accel_train.cli.run leaves in the same way


def one_run(out: Path, dataset: str, name: str) -> dict[str, Any]:
    """What the run gave; `refused` holds the words with which it stopped, `error` the traceback of what must not happen."""
    engine, _, rest = name.partition("/")
    scenario, _, num_micro_batches = rest.partition("@")
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    config = config_of(
        scenario,
        dataset=dataset,
        run_dir=str(out / name),
        engine=engine,
        micro_batch_size=GLOBAL_BATCH // (world_size * int(num_micro_batches)),
    )
    forget_last_engine()
    try:
        with mock.patch.object(build, "zero_plugin", sharding_everything):
            return observed_run(config, scenario)
    except Exception:  # noqa: BLE001  # the test that asks for this run fails with it; the other runs go on
        traceback.print_exc()
        return {"error": traceback.format_exc()}


def observed_run(config: RunConfig, scenario: str) -> dict[str, Any]:
    engine = build.build_engine(config)
    log = RunLog(Path(config.run_dir), is_main=engine.is_main, rank=engine.rank)
    run = set_up(config, engine, log, StopRequest(), fresh=False)
    if scenario == "fp16_search":
        run.state.loss_scale = FAR_TOO_LARGE_A_SCALE
    result: dict[str, Any] = {
        "groups": [without_parameters(group) for group in engine.optimizer.param_groups],
        "buffers_before": buffers(run),
        "counts": count_calls(run),
    }
    watch_first_step(run, result)
    if scenario == "fp16_overflow":
        overflow_once(run)
    try:
        with count_reductions(run, result["counts"]) if scenario == "counted" else nullcontext():
            loop(run)
    except (UserError, CheckFailed) as refusal:
        result["refused"] = str(refusal)
    log.close()
    result["signs"] = engine.gather_objects(signs_of_engine(engine))
    result["weights"] = whole_weights(engine)
    result["equal_on_all_ranks"] = len(set(engine.gather_objects(digest(result["weights"])))) == 1
    result["buffers"] = buffers(run)
    result["state"] = asdict(run.state)
    return result


def digest(tensors: dict[str, Tensor]) -> str:
    whole = hashlib.sha256()
    for tensor in tensors.values():
        whole.update(tensor.numpy().tobytes())
    return whole.hexdigest()


def buffers(run: Run) -> dict[str, Tensor]:
    return {name: buffer.detach().clone() for name, buffer in run.engine.bare_model().named_buffers()}


def without_parameters(group: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "params"}


def sharding_everything(launch: Launch, micro_batch_size: int) -> DeepSpeedPlugin:
    """ZeRO-3 keeps parameters of fewer than 100,000 elements whole, and our models have no others."""
    plugin = zero_plugin(launch, micro_batch_size)
    plugin.deepspeed_config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    return plugin


def forget_last_engine() -> None:
    """Accelerate keeps one state for the whole process. The process group is kept."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)


def watch_first_step(run: Run, result: dict[str, Any]) -> None:
    """Keeps the whole gradients of the first step, before clipping, and which modules were in train mode then."""
    unscale = run.engine.unscale

    def watched() -> None:
        unscale()
        if "gradients" not in result:
            result["gradients"] = whole_gradients(run.engine)
            result["training"] = {name: module.training for name, module in run.engine.bare_model().named_modules()}

    run.engine.unscale = watched  # type: ignore[method-assign]


def count_calls(run: Run) -> Counter[str]:
    """Counts, from now on, forward passes of each part of the model and of all linear layers, and loss evaluations."""
    counts: Counter[str] = Counter()
    for module in run.engine.bare_model().modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda module, inputs: counts.update(["linear layers"]))
    for name, module in run.engine.bare_model().named_children():
        module.register_forward_pre_hook(lambda module, inputs, name=name: counts.update([name]))
    losses = run.task.losses

    def counted_losses(outputs: Batch, batch: Batch) -> dict[str, Tensor]:
        counts["losses"] += 1
        return losses(outputs, batch)

    run.task.losses = counted_losses  # type: ignore[method-assign]
    return counts


@contextmanager
def count_reductions(run: Run, counts: Counter[str]) -> Iterator[None]:
    """DDP: reductions of the last bucket, so one for each whole reduction. FSDP2: one for each sharded unit."""

    def reduced(group: Any, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        counts["reductions"] += bucket.is_last()
        return allreduce_hook(group, bucket)

    def scattered(*args: Any, **kwargs: Any) -> Any:
        counts["reductions"] += 1
        return reduce_scatter(*args, **kwargs)

    if isinstance(run.engine.model, DistributedDataParallel):
        run.engine.model.register_comm_hook(None, reduced)
    name = next(name for name in REDUCE_SCATTER if name in vars(dist))
    reduce_scatter = vars(dist)[name]
    with mock.patch.object(dist, name, scattered):
        yield


def overflow_once(run: Run) -> None:
    """On the last rank, one backward pass of one step overflows."""
    backward = run.engine._backward
    pending = [run.engine.rank == run.engine.world_size - 1]

    def overflowing(loss: Tensor) -> None:
        factor = float("inf") if pending[0] and run.state.step == OVERFLOW_STEP else 1.0
        pending[0] &= factor == 1.0
        backward(loss * factor)

    run.engine._backward = overflowing  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
