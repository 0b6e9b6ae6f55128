"""Ways in which the last rank of a launch may differ from the others, put into place before it starts."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accel_train import preflight
from accel_train.engine.engine import Engine

Request = dict[str, Any]


def other_configuration(request: Request) -> None:
    request["argv"] = [*request["argv"], "optimizer.towers.text.lr=0.002", "seed=7", "--inject", "nan:rank=1@3"]


def other_package(request: Request) -> None:
    installed = preflight.installed
    preflight.installed = lambda name: "5.0.1" if name == "transformers" else installed(name)


def other_code(request: Request) -> None:
    copy = Path(tempfile.mkdtemp(dir=request["output"])) / "accel_train"
    shutil.copytree(preflight.PACKAGE, copy, ignore=shutil.ignore_patterns("sample", "__pycache__"))
    (copy / "step.py").write_text("# half of an update\n")
    preflight.PACKAGE = copy


def other_clock(request: Request) -> None:
    now = preflight.now
    preflight.now = lambda: now() - 90 * 10**9


def other_folder(request: Request) -> None:
    """A run_dir of the same name on a disk of its own."""
    preflight.VISIBLE_WITHIN = 1.0
    folder = Path(request["output"]) / "disk_of_the_other_host"
    folder.mkdir()
    os.chdir(folder)


def counted_twice(request: Request) -> None:
    sum_ = Engine.sum_
    Engine.sum_ = lambda engine, value: sum_(engine, value.mul_(2))  # type: ignore[method-assign]


ODDITIES: dict[str, Callable[[Request], None]] = {
    "configuration": other_configuration,
    "package": other_package,
    "code": other_code,
    "clock": other_clock,
    "folder": other_folder,
    "sum": counted_twice,
}
