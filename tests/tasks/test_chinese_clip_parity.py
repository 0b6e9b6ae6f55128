"""Our runs give the losses of the original Chinese-CLIP trainer, step by step."""

from pathlib import Path

import numpy as np
import pytest

from accel_train.tools.import_data import import_data
from tests.original_trainer import losses_of_the_original, start_model, write_config, write_source
from tests.short_runs import metrics, train

pytestmark = pytest.mark.slow

ONE_THREAD = {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parity")
    write_source(folder / "source")
    import_data(str(folder / "source"), str(folder / "dataset"), show_progress=False)
    start_model(folder)
    return write_config(folder)


@pytest.fixture(scope="module")
def original(config: Path) -> list[float]:
    return losses_of_the_original(config.parent / "source", start_model(config.parent))


def difference(config: Path, run_dir: Path, original: list[float], *overrides: str) -> float:
    done = train(config, run_dir, *overrides, environment=ONE_THREAD)
    assert done.returncode == 0, done.stdout + done.stderr
    losses = [row["loss"] for row in metrics(run_dir, "train")]
    assert len(losses) == len(original)
    return float(np.abs(np.array(losses) - original).max())


@pytest.mark.parametrize("micro_batch_size", [8, 2])
def test_losses_are_the_originals(config: Path, tmp_path: Path, original: list[float], micro_batch_size: int) -> None:
    assert max(original) - min(original) > 0.05  # it learns, so that an update that differs would show
    assert difference(config, tmp_path / "run", original, f"data.micro_batch_size={micro_batch_size}") < 2e-6


@pytest.mark.parametrize("change", ["optimizer.no_decay=vectors", "data.decoding=fast"])
def test_each_of_its_rules_shows(config: Path, tmp_path: Path, original: list[float], change: str) -> None:
    assert difference(config, tmp_path / "run", original, change) > 1e-5
