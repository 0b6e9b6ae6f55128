"""`accel-train doctor`: what this machine and this launch really are, and what would go wrong.

Under several ranks every rank looks for itself, rank 0 speaks and names what differs between them.
"""

import json
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from accel_train.engine.launch import place_of_launch
from accel_train.engine.rendezvous import call_roll, find_address
from accel_train.errors import CheckFailed
from accel_train.tools.machine import EXTRAS, PACKAGES, facts

MEETING_TIMEOUT = timedelta(seconds=60)
LITTLE_DISK, LITTLE_SHARED_MEMORY = 10e9, 1e9
MOST_CLOCK_SKEW = 2.0
OWN_TO_EACH_RANK = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURMD_NODENAME")
TRUE = ("1", "true", "yes")

Facts = dict[str, Any]


def doctor(*, as_json: bool = False) -> None:
    """Prints facts, differences between ranks, and warnings. Raises CheckFailed if the ranks can't talk to each other."""
    everyone = gather(facts(Path.cwd()))
    if everyone is None:
        return
    report = {
        "ranks": everyone,
        "differences": differences(everyone),
        "warnings": [*dict.fromkeys(text for one in everyone for text in warnings(one)), *skew(everyone)],
        "extras": {extra: everyone[0]["packages"][package] is not None for extra, package in EXTRAS.items()},
    }
    if as_json:
        print(json.dumps(report, indent=1))
    else:
        show(report, Console(highlight=False))


def gather(mine: Facts) -> list[Facts] | None:
    """Every rank's facts on rank 0, None on the others. The clock is read when all ranks are there.

    Raises UserError where the launch itself is wrong, with the ranks that did not come.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return [{**mine, "clock": time.time(), "reduced_over": None}]
    launch = place_of_launch("ddp", offload_optimizer=False)
    find_address(launch, must_use_all_hosts=True)
    store = call_roll(launch)
    try:
        dist.init_process_group(
            "gloo", store=store, rank=launch.rank, world_size=launch.world_size, timeout=MEETING_TIMEOUT
        )
        dist.barrier()
        mine = {**mine, "clock": time.time(), "reduced_over": _try_devices()}
        everyone: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, mine)
    except (RuntimeError, ValueError) as error:
        raise CheckFailed(
            f"The ranks of this launch can't talk to each other over gloo: {error}. Check MASTER_ADDR, MASTER_PORT, the "
            "network between the hosts, and GLOO_SOCKET_IFNAME where a host has several networks."
        ) from error
    is_main = dist.get_rank() == 0
    dist.destroy_process_group()
    return everyone if is_main else None


def _try_devices() -> str:
    """Sums a one over all ranks as training would, and returns the backend that did it."""
    on_cuda = torch.cuda.is_available()
    if on_cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    backend = "nccl" if on_cuda else "gloo"
    one = torch.ones(1, device="cuda" if on_cuda else "cpu")
    dist.all_reduce(one, group=dist.new_group(backend=backend, timeout=MEETING_TIMEOUT))
    if one.item() != dist.get_world_size():
        raise CheckFailed(f"{backend}: ones from {dist.get_world_size()} ranks summed up to {one.item():g}.")
    return backend


def differences(everyone: list[Facts]) -> dict[str, list[Any]]:
    """Facts that should agree over ranks and don't, each as a list by rank."""
    flat = [_comparable(one) for one in everyone]
    keys = dict.fromkeys(key for one in flat for key in one)
    by_key = {key: [one.get(key) for one in flat] for key in keys}
    return {key: values for key, values in by_key.items() if any(value != values[0] for value in values)}


def _comparable(one: Facts) -> Facts:
    named = {f"packages.{name}": version for name, version in one["packages"].items()}
    named |= {f"launch.{name}": value for name, value in one["launch"].items() if name not in OWN_TO_EACH_RANK}
    plain = ("code", "python", "cpus", "torch_threads", "memory_limit", "devices", "backends", "reduced_over")
    return named | {key: one.get(key) for key in plain}


def skew(everyone: list[Facts]) -> Iterator[str]:
    clocks = [one["clock"] for one in everyone]
    if max(clocks) - min(clocks) > MOST_CLOCK_SKEW:
        yield f"The clocks of the ranks differ by {max(clocks) - min(clocks):.1f} s; logs and file times will mislead."


def warnings(one: Facts) -> Iterator[str]:
    """What would go wrong on this rank, each with its remedy."""
    yield from _launch_warnings(one)
    yield from _device_warnings(one)
    if one["disk_free"] is not None and one["disk_free"] < LITTLE_DISK:
        yield f"{one['host']}: {one['disk_free'] / 1e9:.1f} GB free here; a checkpoint needs 12 bytes for each parameter."
    if one["shared_memory"] is not None and one["shared_memory"] < LITTLE_SHARED_MEMORY:
        yield (
            f"{one['host']}: {one['shared_memory'] / 1e6:.0f} MB free in /dev/shm, through which loader processes hand "
            "over batches. Start the container with --shm-size=8g, or set data.num_workers=0."
        )
    for lock in one["extension_locks"]:
        yield f"{one['host']}: {lock} makes DeepSpeed wait for ever if the process that made it is gone. Remove it then."


def _launch_warnings(one: Facts) -> Iterator[str]:
    launch = one["launch"]
    uses_deepspeed = launch.get("ACCELERATE_USE_DEEPSPEED", "").lower() in TRUE
    if uses_deepspeed and launch.get("ACCELERATE_USE_CPU", "").lower() in TRUE:
        yield "ACCELERATE_USE_CPU is set beside DeepSpeed, and Accelerate by itself drops DeepSpeed. Unset it."
    if uses_deepspeed and one["packages"]["deepspeed"] is None:
        yield "ACCELERATE_USE_DEEPSPEED is set, but DeepSpeed is missing: pip install 'accel_train[deepspeed]'."
    if launch.get("ACCELERATE_USE_FSDP", "").lower() in TRUE and launch.get("FSDP_VERSION", "1") != "2":
        yield "ACCELERATE_USE_FSDP is set without FSDP_VERSION=2; only FSDP2 is supported."
    ranks, tasks = int(launch.get("WORLD_SIZE", 1)), int(launch.get("SLURM_NTASKS", 1))
    if "WORLD_SIZE" not in launch and tasks > 1:
        yield f"Slurm runs {tasks} tasks, but WORLD_SIZE is not set: each would train alone. Start one torchrun a node."
    here = int(launch.get("LOCAL_WORLD_SIZE", ranks))
    if one["devices"] and here > len(one["devices"]):
        yield f"{one['host']}: {here} ranks for {len(one['devices'])} CUDA devices. Start one rank for each device."
    threads, cpus = one["torch_threads"] * here, min(one["cpus"], one["cpu_quota"] or one["cpus"])
    if not one["devices"] and threads > cpus:
        yield f"{one['host']}: {here} ranks x {one['torch_threads']} threads on {cpus:g} CPUs. Lower OMP_NUM_THREADS."


def _device_warnings(one: Facts) -> Iterator[str]:
    if one["nvidia_driver"] and not one["devices"]:
        build = one["packages"]["torch"]
        yield (
            f"{one['host']} has an NVIDIA driver, but torch {build} sees no device. "
            "Install a CUDA build of torch, or look at CUDA_VISIBLE_DEVICES."
        )
    torch_build, vision_build = ((one["packages"][name] or "").partition("+")[2] for name in ("torch", "torchvision"))
    if one["packages"]["torchvision"] is not None and torch_build != vision_build:
        yield (
            f"torchvision {one['packages']['torchvision']} stands beside torch {one['packages']['torch']}; another build "
            "breaks transformers' models as soon as they are imported. Uninstall it: it is not needed here."
        )


def show(report: dict[str, Any], console: Console) -> None:
    first, num_ranks = report["ranks"][0], len(report["ranks"])
    console.print(_table(first, num_ranks))
    console.print("\n[bold]Versions[/bold]")
    console.print("  " + ", ".join(f"{name} {first['packages'][name] or 'missing'}" for name in PACKAGES))
    for extra, package in EXTRAS.items():
        version = first["packages"][package]
        console.print(
            f"  {package} {version}" if version else f"  {package} missing: pip install 'accel-train\\[{extra}]'"
        )
    if first["launch"]:
        console.print("\n[bold]Launch[/bold]")
    for name, value in first["launch"].items():
        console.print(f"  {name}={escape(value)}")
    for key, values in report["differences"].items():
        by_rank = "; ".join(f"rank {rank}: {value}" for rank, value in enumerate(values))
        console.print(f"[yellow]differs[/yellow] {key}: {escape(by_rank)}")
    for text in report["warnings"]:
        console.print(f"[yellow]warning[/yellow] {escape(text)}")
    if not report["warnings"] and not report["differences"]:
        console.print("\n[green]Nothing stands out.[/green]")


def _table(one: Facts, num_ranks: int) -> Table:
    devices = ", ".join(f"{device['name']} ({_gigabytes(device['memory'])})" for device in one["devices"]) or "none"
    quota = f", quota {one['cpu_quota']:g}" if one["cpu_quota"] else ""
    limit = f", limit {_gigabytes(one['memory_limit'])}" if one["memory_limit"] else ""
    ranks = "1, not launched as a group" if num_ranks == 1 else f"{num_ranks}, which sum up over {one['reduced_over']}"
    rows = {
        "host": f"{one['host']}, {one['system']}, Python {one['python']}",
        "CUDA devices": devices,
        "backends": ", ".join(f"{name} {version or 'none'}" for name, version in one["backends"].items()),
        "ranks": ranks,
        "CPUs": f"{one['cpus']}{quota}; torch uses {one['torch_threads']} threads",
        "memory": f"{_gigabytes(one['memory_available'])} free of {_gigabytes(one['memory_total'])}{limit}",
        "/dev/shm": f"{_gigabytes(one['shared_memory'])} free",
        "disk": f"{_gigabytes(one['disk_free'])} free in {Path.cwd()}",
        "clock": f"{datetime.fromtimestamp(one['clock'], UTC):%Y-%m-%d %H:%M:%S} UTC",
    }
    table = Table.grid(padding=(0, 2))
    for key, value in rows.items():
        table.add_row(f"[bold]{key}[/bold]", escape(value))
    return table


def _gigabytes(num_bytes: int | None) -> str:
    return "unknown" if num_bytes is None else f"{num_bytes / 1e9:.3g} GB"
