"""What this process can see of its machine and of its launch: plain facts, gathered without starting anything."""

import os
import platform
import shutil
import socket
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from accel_train.config.secrets import is_secret_name, looks_secret
from accel_train.preflight import code_of_package, digest

PACKAGES = ("torch", "accelerate", "transformers", "safetensors", "numpy", "pyarrow", "Pillow", "pydantic")
EXTRAS = {
    "deepspeed": "deepspeed",
    "lmdb": "lmdb",
    "datasets": "datasets",
    "plot": "matplotlib",
    "tensorboard": "tensorboard",
}
"""Extra of this package, and the package that it brings."""
LAUNCH_VARIABLES = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "OMP_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "DS_ACCELERATOR",
    "TORCH_EXTENSIONS_DIR",
    "HF_HUB_OFFLINE",
)
LAUNCH_PREFIXES = ("ACCELERATE_", "FSDP_", "SLURM_", "NCCL_", "GLOO_")


def facts(folder: Path) -> dict[str, Any]:
    """All facts of one rank, as JSON values; sizes in bytes. `folder` is where a run would write."""
    return {
        "host": socket.gethostname(),
        "system": platform.platform(),
        "code": digest(code_of_package()),
        "python": platform.python_version(),
        "packages": {name: version_of(name) for name in (*PACKAGES, *EXTRAS.values(), "torchvision")},
        "cpus": len(os.sched_getaffinity(0)),
        "cpu_quota": cpu_quota(),
        "torch_threads": torch.get_num_threads(),
        "memory_total": _meminfo("MemTotal"),
        "memory_available": _meminfo("MemAvailable"),
        "memory_limit": memory_limit(),
        "shared_memory": _free(Path("/dev/shm")),
        "disk_free": _free(folder),
        "devices": devices(),
        "nvidia_driver": Path("/proc/driver/nvidia/version").exists(),
        "backends": backends(),
        "launch": launch_variables(),
        "extension_locks": extension_locks(),
    }


def version_of(package: str) -> str | None:
    """Installed version, found without importing the package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def devices() -> list[dict[str, Any]]:
    """CUDA devices that this process can use."""
    if not torch.cuda.is_available():
        return []
    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found.append(
            {
                "name": properties.name,
                "memory": properties.total_memory,
                "capability": f"{properties.major}.{properties.minor}",
                "bf16": properties.major >= 8,
            }
        )
    return found


def backends() -> dict[str, str | None]:
    """Communication backends of this torch build; None for one that it lacks."""
    has_nccl = dist.is_available() and dist.is_nccl_available() and torch.cuda.is_available()
    return {
        "cuda": torch.version.cuda,
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if has_nccl else None,
        "gloo": "yes" if dist.is_available() and dist.is_gloo_available() else None,
    }


def launch_variables() -> dict[str, str]:
    """The variables by which launchers speak to us, sorted. No others: an environment also holds secrets."""
    return {
        name: value
        for name, value in sorted(os.environ.items())
        if (name in LAUNCH_VARIABLES or name.startswith(LAUNCH_PREFIXES))
        and not (is_secret_name(name) or looks_secret(value))
    }


def memory_limit(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """The control group's memory limit, version 2 or 1; None for no limit."""
    for path in (root / "memory.max", root / "memory" / "memory.limit_in_bytes"):
        if path.exists():
            text = path.read_text().strip()
            limit = int(text) if text.isdecimal() else None
            # Version 1 writes "no limit" as a number near 2^63.
            return limit if limit is not None and limit < 2**60 else None
    return None


def cpu_quota(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """CPUs' worth of time that the control group may use, version 2; None for no limit."""
    path = root / "cpu.max"
    if not path.exists():
        return None
    quota, period = path.read_text().split()
    return None if quota == "max" else int(quota) / int(period)


def extension_locks() -> list[str]:
    """Lock files of DeepSpeed's compiled parts. One that a killed process left makes the next start wait for ever."""
    default = Path.home() / ".cache" / "torch_extensions"
    folder = Path(os.environ.get("TORCH_EXTENSIONS_DIR", default))
    return sorted(str(path) for path in folder.glob("**/lock"))


def _meminfo(key: str) -> int | None:
    path = Path("/proc/meminfo")
    if not path.exists():
        return None
    for line in path.read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return None


def _free(folder: Path) -> int | None:
    return shutil.disk_usage(folder).free if folder.exists() else None
