"""Our runs give the losses of the original Chinese-CLIP trainer, step by step."""

from pathlib import Path

import numpy as np
import pytest

from accel_train.tools.imports.pairs import import_data
from tests.original_trainer import LARGEST, Trace, train_as_the_original, write_config, write_source
from tests.short_runs import metrics, train

pytestmark = pytest.mark.slow

ONE_THREAD = {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parity")
    write_source(folder / "source")
    import_data(str(folder / "source"), str(folder / "dataset"), show_progress=False)
    return write_config(folder)


@pytest.fixture(scope="module")
def original(config: Path) -> Trace:
    return train_as_the_original(config.parent)


def difference(config: Path, run_dir: Path, original: Trace, *overrides: str) -> float:
    """The largest one of a loss."""
    done = train(config, run_dir, *overrides, environment=ONE_THREAD)
    assert done.returncode == 0, done.stdout + done.stderr
    losses = [row["loss"] for row in metrics(run_dir, "train")]
    assert len(losses) == len(original.losses)
    return float(np.abs(np.array(losses) - original.losses).max())


def test_the_comparison_meets_what_can_differ(original: Trace) -> None:
    """It learns, and logit_scale is held, leaves its limit and comes back to it."""
    assert original.losses[0] - min(original.losses) > 0.5
    held = [scale == LARGEST for scale in original.logit_scales]
    assert held[0] and held[-1] and not all(held)


@pytest.mark.parametrize("micro_batch_size", [8, 2])
def test_losses_are_the_originals(config: Path, tmp_path: Path, original: Trace, micro_batch_size: int) -> None:
    assert difference(config, tmp_path / "run", original, f"data.micro_batch_size={micro_batch_size}") < 2e-6


@pytest.mark.parametrize("change", ["optimizer.no_decay=vectors", "data.decoding=fast"])
def test_each_of_its_rules_shows(config: Path, tmp_path: Path, original: Trace, change: str) -> None:
    assert difference(config, tmp_path / "run", original, change) > 1e-5
