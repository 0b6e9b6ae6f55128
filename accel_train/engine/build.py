"""Chooses the engine and builds Accelerate for it."""

import os
from dataclasses import replace
from datetime import timedelta

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, KwargsHandler

from accel_train.config.schema import RunConfig
from accel_train.engine.engine import Engine
from accel_train.engine.fsdp import FullyShardedDataParallel2
from accel_train.engine.host_memory import keep_freed_memory
from accel_train.engine.launch import (
    Launch,
    ensure_rendezvous,
    forget_launcher_settings,
    name_accelerator,
    read_launch,
    threads_per_rank,
)
from accel_train.engine.plain import DataParallel
from accel_train.engine.rendezvous import call_roll, find_address
from accel_train.engine.zero import Zero, zero_plugin
from accel_train.errors import UserError

LONGEST_COLLECTIVE = timedelta(days=1)


def build_engine(config: RunConfig, *, for_evaluation: bool = False) -> Engine:
    """The engine of the configuration or the launcher, on CUDA if there is any, else on the CPU. Raises UserError.

    An engine for evaluation keeps a whole model on every rank, whatever the training engine is.
    """
    launch = read_launch(config)
    if for_evaluation:
        launch = replace(launch, engine="ddp", offload_optimizer=False)
    on_cuda = torch.cuda.is_available()
    _set_threads(config, launch)
    forget_launcher_settings()
    if on_cuda:
        torch.cuda.set_device(launch.local_rank)
    else:
        keep_freed_memory()
        if launch.engine.startswith("zero"):
            # This would make Accelerate drop DeepSpeed without a word.
            os.environ.pop("ACCELERATE_USE_CPU", None)
    find_address(launch, must_use_all_hosts=not for_evaluation)
    if launch.engine != "ddp":
        ensure_rendezvous(launch)
    name_accelerator(on_cuda=on_cuda)
    backend = "nccl" if on_cuda else "gloo"
    if not dist.is_initialized():
        _connect(launch, backend, _collective_timeout(config))

    plugin = zero_plugin(launch, config.data.micro_batch_size) if launch.engine.startswith("zero") else None
    handlers: list[KwargsHandler] = [
        DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
    ]
    if launch.world_size > 1 or plugin is not None:
        handlers.append(InitProcessGroupKwargs(backend=backend))
    accelerator = Accelerator(
        cpu=None if on_cuda or plugin else True,
        mixed_precision="no",
        deepspeed_plugin=plugin,
        log_with=None if for_evaluation else _known_trackers(config.log.trackers) or None,
        project_dir=config.run_dir,
        kwargs_handlers=handlers,
    )
    engine_class = {"ddp": DataParallel, "fsdp2": FullyShardedDataParallel2}.get(launch.engine, Zero)
    return engine_class(launch, accelerator)


def _connect(launch: Launch, backend: str, timeout: timedelta) -> None:
    """Makes the process group, which one process alone needs for the engines that shard."""
    store = call_roll(launch)
    if store is not None:
        dist.init_process_group(backend, store=store, rank=launch.rank, world_size=launch.world_size, timeout=timeout)
    elif launch.engine != "ddp":
        dist.init_process_group(backend, timeout=timeout)


def _collective_timeout(config: RunConfig) -> timedelta:
    """Longer than the watchdog waits, who knows more than a collective that ends by itself."""
    if config.hang_minutes is None:
        return LONGEST_COLLECTIVE
    return timedelta(minutes=2 * config.hang_minutes + 5)


def _known_trackers(names: list[str]) -> list[str]:
    """The names, if Accelerate can start all of them; it would leave out the others with a line in its log."""
    from accelerate.tracking import get_available_trackers

    available = [str(tracker) for tracker in get_available_trackers()]
    for name in names:
        if name not in available:
            raise UserError(
                f"log.trackers: {name!r} is not installed or not known; installed here: {sorted(available) or 'none'}. "
                "Install it (pip install 'accel_train[tensorboard]', pip install wandb, ...) or take it out.",
                code="AT203",
            )
    return names


def _set_threads(config: RunConfig, launch: Launch) -> None:
    local = int(os.environ.get("LOCAL_WORLD_SIZE", launch.world_size)) if launch.world_size > 1 else 1
    threads = threads_per_rank(config, local)
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)
