"""How fast this host is, as it was measured once: read and written as JSON in the user's cache folder.

A calibration belongs to one machine and one version of torch, and is refused elsewhere.
"""

import json
import math
import os
import platform
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from accel_train.errors import UserError
from accel_train.json_text import read_json
from accel_train.tools.dry_run.counting import PRODUCTS, Work

FORMAT_VERSION = 3
HOW = "`accel-train bench CONFIG --calibrate` measures it; under the launcher of the run, its collectives too"
Curve = list[tuple[float, float]]
"""(size, seconds), sizes rising."""


@dataclass(frozen=True, slots=True)
class Rates:
    """What one rank computes at, with a given number of CPU threads or on a GPU."""

    curves: dict[str, Curve]
    """Seconds of one operation by `kind/dtype` and size, as `Work` names them; element-wise ones by `kind`."""
    seconds_per_operation: float
    """What Python, autograd and the modules around an operation cost on the host."""

    def seconds_of(self, work: Work) -> float:
        """Of one operation. Raises UserError where none of its kind was measured."""
        key = f"{work.kind}/{work.dtype}" if work.kind in PRODUCTS else work.kind
        curve = self.curves.get(key)
        if curve is None:
            raise UserError(f"no time of {key} operations was measured on this host. {HOW}.")
        return seconds_at(curve, work.size) + self.seconds_per_operation


@dataclass(frozen=True, slots=True)
class Calibration:
    """Everything measured of one host."""

    machine: dict[str, str]
    rates: dict[str, Rates] = field(default_factory=dict)
    """By `cuda`, or `cpu/THREADS`, with `xRANKS` where several computed at once."""
    collectives: dict[str, dict[str, Curve]] = field(default_factory=dict)
    """By number of ranks, then by kind: seconds by bytes that each rank puts in or gets out."""


def calibration_path() -> Path:
    """`$XDG_CACHE_HOME/accel_train/calibration.json`, by default in ~/.cache."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    folder = Path(root) if os.path.isabs(root) else Path.home() / ".cache"
    return folder / "accel_train" / "calibration.json"


def this_machine() -> dict[str, str]:
    """What a calibration depends on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "host": platform.node(),
        "cpu": _cpu_name(),
        "num_cpus": str(len(os.sched_getaffinity(0))),
        "gpu": gpu,
        "torch": torch.__version__,
    }


def rates_key(device_type: str, ranks: int, threads: int | None = None) -> str:
    """On a CPU host ranks share cores and memory, so each computes more slowly than one alone."""
    if device_type == "cuda":
        return "cuda"
    return f"cpu/{threads or torch.get_num_threads()}{f'x{ranks}' if ranks > 1 else ''}"


def read_calibration() -> Calibration:
    """Raises UserError where there is none, or one that says nothing of this machine."""
    path = calibration_path()
    if not path.is_file():
        raise UserError(f"the speed of this host has not been measured. {HOW}.")
    try:
        found = read_json(path.read_text(encoding="utf-8"))
        if found["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format version {found['format_version']}")
        calibration = Calibration(
            {str(key): str(value) for key, value in found["machine"].items()},
            {key: _rates(value) for key, value in found["rates"].items()},
            {
                ranks: {kind: _curve(curve) for kind, curve in kinds.items()}
                for ranks, kinds in found["collectives"].items()
            },
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} can't be used ({error!r}). Delete it; {HOW}.") from error
    here = this_machine()
    for key, value in calibration.machine.items():
        if here.get(key) != value:
            raise UserError(
                f"{path} was measured with {key} {value}, and this is {here.get(key)}: its figures say nothing of this "
                f"machine. {HOW}."
            )
    return calibration


def write_calibration(calibration: Calibration) -> Path:
    """Leaves the file whole at any moment. Raises UserError where it can't be written."""
    path = calibration_path()
    aside = path.with_suffix(f".{os.getpid()}.new")
    content = {"format_version": FORMAT_VERSION, **asdict(calibration)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        aside.replace(path)
    except OSError as error:
        raise UserError(f"{path} can't be written: {error}. XDG_CACHE_HOME names another folder for it.") from error
    return path


def seconds_at(curve: Curve, size: float) -> float:
    """Interpolated between the measured sizes on logarithmic scales.

    Below the smallest an operation costs what the smallest does; above the largest, in proportion.
    """
    if size <= curve[0][0]:
        return curve[0][1]
    for (low, low_seconds), (high, high_seconds) in pairwise(curve):
        if size <= high:
            share = math.log(size / low) / math.log(high / low)
            return low_seconds * (high_seconds / low_seconds) ** share
    largest, seconds = curve[-1]
    return seconds * size / largest


def _rates(found: dict[str, Any]) -> Rates:
    curves = {kind: _curve(curve) for kind, curve in found["curves"].items()}
    return Rates(curves, float(found["seconds_per_operation"]))


def _curve(found: list[list[float]]) -> Curve:
    curve = [(float(size), float(seconds)) for size, seconds in found]
    if not curve or any(seconds <= 0 or size <= 0 for size, seconds in curve) or curve != sorted(curve):
        raise ValueError("a curve must rise in size and hold times above 0")
    return curve


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
