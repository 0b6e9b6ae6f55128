"""Two ranks give the losses of the original Chinese-CLIP trainer in one process, which is what it means to do."""

import json
from pathlib import Path

import numpy as np
import pytest

from accel_train.tools.imports.pairs import import_data
from tests.distributed.ranks import run_ranks
from tests.original_trainer import Trace, train_as_the_original, write_config, write_source


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parity")
    write_source(folder / "source")
    import_data(str(folder / "source"), str(folder / "dataset"), show_progress=False)
    return write_config(folder)


@pytest.fixture(scope="module")
def original(config: Path) -> Trace:
    return train_as_the_original(config.parent)


@pytest.mark.parametrize("engine", ["ddp", "zero2", "zero3", "fsdp2"])
def test_losses_on_two_ranks(config: Path, tmp_path: Path, original: Trace, engine: str) -> None:
    run_dir = tmp_path / "run"
    overrides = [f"run_dir={run_dir}", f"engine={engine}", "data.micro_batch_size=2"]
    ranks = run_ranks(2, "-m", "accel_train", "train", str(config), *overrides)
    assert [rank.exit_code for rank in ranks] == [0, 0]
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["split"] == "train"]
    assert np.abs(np.array(losses) - original.losses).max() < 1e-5
