"""The files in launch/ are understood by `accelerate launch` and mean the engine that they are named after."""

import argparse
import os
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

from accel_train.config.load import load_config
from accel_train.engine.launch import read_launch

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "launch").glob("*.yaml"))
ENGINES = {
    "cpu": ("ddp", False),
    "ddp": ("ddp", False),
    "fsdp2": ("fsdp2", False),
    "zero1": ("zero1", False),
    "zero2": ("zero2", False),
    "zero3": ("zero3", False),
    "zero3_offload": ("zero3", True),
}


def test_each_engine_has_a_file() -> None:
    assert {path.stem for path in FILES} == set(ENGINES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_begins_with_purpose_and_command(path: Path) -> None:
    purpose, command, *_ = path.read_text(encoding="utf-8").splitlines()
    assert purpose.startswith("# ")
    assert purpose.endswith(".")
    assert f"accelerate launch --config_file launch/{path.name} --num_processes " in command
    assert command.endswith(" -m accel_train train CONFIG")


def environment_of(arguments: argparse.Namespace) -> dict[str, str]:
    """What `accelerate launch` puts into the environment of every rank."""
    arguments, _, _ = _validate_launch_command(arguments)
    if arguments.use_deepspeed:
        arguments.deepspeed_fields_from_accelerate_config = ""  # set by `accelerate launch` itself; for its messages
        return prepare_deepspeed_cmd_env(arguments)[1]
    assert arguments.multi_gpu or arguments.use_fsdp  # else one process alone would start
    return prepare_multi_gpu_env(arguments)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_means_its_engine(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_config_from_file(str(path))  # refuses unknown keys
    command = ["--config_file", str(path), "--num_processes", "2", "--main_process_port", "0", "-m", "accel_train"]
    added = environment_of(launch_command_parser().parse_args(command))
    for name in os.environ:
        if name.startswith(("ACCELERATE_", "FSDP_")):
            monkeypatch.delenv(name)
    for name, value in added.items():
        if name.startswith(("ACCELERATE_", "FSDP_")):
            monkeypatch.setenv(name, value)
    launch = read_launch(load_config(ROOT / "configs" / "quickstart.yaml"))
    assert (launch.engine, launch.offload_optimizer) == ENGINES[path.stem]
