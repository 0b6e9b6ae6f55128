"""`accelerate launch` with each file of launch/ trains with the engine that it is named after, on a CPU host too."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from accel_train.config.load import dump_config
from tests.distributed.ranks import ROOT, clean_environment
from tests.distributed.scenarios import FEW_STEPS, config_of

ENGINES = {
    "cpu": "ddp",
    "ddp": "ddp",
    "fsdp2": "fsdp2",
    "zero1": "zero1",
    "zero2": "zero2",
    "zero3": "zero3",
    "zero3_offload": "zero3",
}
CLASSES = {"ddp": "DataParallel", "fsdp2": "FullyShardedDataParallel2"}


def launch(file: str, config: Path, *overrides: str) -> str:
    """Output of two ranks under `accelerate launch`."""
    command = ["-m", "accelerate.commands.launch", "--config_file", f"launch/{file}.yaml", "--num_processes", "2"]
    done = subprocess.run(
        [sys.executable, *command, "--main_process_port", "0", "-m", "accel_train", "train", str(config), *overrides],
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture
def config(dataset: str, tmp_path: Path) -> Path:
    """Two steps, with no engine named."""
    values = config_of("counted", dataset=dataset, run_dir=str(tmp_path / "run"), engine="ddp", micro_batch_size=4)
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(values.model_copy(update={"engine": None})), encoding="utf-8")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("file", ENGINES)
def test_trains_with_its_engine(file: str, config: Path, tmp_path: Path) -> None:
    output = launch(file, config)
    engine = ENGINES[file]
    assert f"engine {engine} ({CLASSES.get(engine, 'Zero')}) on 2 x cpu, fp32" in output
    state = json.loads((tmp_path / "run" / "checkpoints" / "latest" / "state.json").read_text())
    assert (state["engine"], state["world_size"], state["step"]) == (engine, 2, FEW_STEPS)
    resolved = (tmp_path / "run" / "config.yaml").read_text()
    assert "engine: null" in resolved or "engine:" not in resolved


@pytest.mark.slow
def test_the_cpu_file_takes_the_configurations_engine(config: Path, tmp_path: Path) -> None:
    assert "engine zero1 (Zero) on 2 x cpu" in launch("cpu", config, "engine=zero1")
