"""`accel-train bench`, as it is called: its figures fit together, and it leaves nothing behind."""

import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from accel_train.cli import main
from accel_train.tools.bench.loader_rates import LoaderRates, loader_rates
from accel_train.tools.bench.report import in_words, show_training
from accel_train.tools.bench.training import Training, memory_shortages
from accel_train.tools.rehearsal import rehearsal
from tests.distributed.ranks import run_ranks
from tests.tools.profile.test_recording import TINY, small_config

SMALL = [*TINY, "data.micro_batch_size=4"]
SHORT = ["--steps=3", "--warmup=1", "--rounds=2"]


def benched(world_size: int, folder: Path, *arguments: str) -> dict[str, Any]:
    """What `bench --json` prints, of a configuration whose run_dir would be `folder/run`."""
    words = ["bench", "configs/quickstart.yaml", f"run_dir={folder}/run", *SMALL, *arguments, "--json"]
    ranks = run_ranks(world_size, "-m", "accel_train", *words, TMPDIR=str(folder))
    assert [rank.exit_code for rank in ranks] == [0] * world_size, ranks[0].output
    assert not list(folder.iterdir()), "nothing is written, and no scratch folder stays"
    found: dict[str, Any] = json.loads(ranks[0].output[ranks[0].output.index("{\n") :])
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("world_size", "engine"), [(1, "ddp"), (2, "ddp"), (2, "zero2")])
def test_training(world_size: int, engine: str, tmp_path: Path) -> None:
    found = benched(world_size, tmp_path, f"engine={engine}", *SHORT)
    assert (found["world_size"], found["engine"]) == (world_size, engine)
    assert found["micro_batches"] == 4 // world_size
    assert found["samples_per_second"] == pytest.approx(16 / found["step_seconds"], rel=0.01)
    assert len(found["peak_memory_gib"]) == world_size
    assert all(0.1 < gib < 8 for gib in found["peak_memory_gib"])
    assert 0 < found["waiting_for_data"] < 1, "without workers it reads in the loop"
    assert 0 < found["mfu"] < 1
    assert 1e6 < found["model_flops_per_sample"] < 1e9
    for name in ("to_bare_loop", "to_whole_batch"):
        ratio, spread = found[name]
        assert 0.05 < ratio < 20, "far more than any machine's noise"
        assert spread >= 0
    assert (found["communication"] > 0) == (world_size > 1)
    assert found["communication_exposed"] <= found["communication"]
    assert found["machine"]["packages"]["torch"] == torch.__version__


FOUND = Training(
    engine="ddp", world_size=1, device="cuda", precision="bf16", global_batch_size=4096, micro_batches=64,
    samples_per_second=1.0, samples_per_second_spread=0.0, step_seconds=8.0, waiting_for_data=0.0, read_ahead=32,
    loader_samples_per_second=1.0, model_flops_per_sample=1.0, mfu=0.5, peak="its data sheet", peak_memory_gib=[132.71],
    memory_shortages=0, communication=0.0, communication_exposed=0.0, to_bare_loop=None, to_whole_batch=None,
    not_compared="", machine={},
)  # fmt: skip


def shown(found: Training) -> str:
    console = Console(record=True, width=300)
    show_training(found, console)
    return console.export_text()


@pytest.mark.parametrize("shortages", [0, 7])
def test_a_device_that_was_full_is_told_with_what_to_do(shortages: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch counts it: each time its allocator finds no room."""
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda device: {"num_alloc_retries": shortages})
    assert memory_shortages(torch.device("cpu")) == 0
    found = replace(FOUND, memory_shortages=memory_shortages(torch.device("cuda")))
    assert ("full 7 times" in shown(found)) == (shortages == 7)


@pytest.mark.parametrize(
    ("waiting", "read_ahead", "is_told"), [(0.3, 32, True), (0.3, 64, False), (0.3, 0, False), (0.01, 32, False)]
)
def test_waiting_is_laid_to_what_is_not_read_ahead(waiting: float, read_ahead: int, *, is_told: bool) -> None:
    text = shown(replace(FOUND, waiting_for_data=waiting, read_ahead=read_ahead))
    assert ("32 are read ahead" in text) == is_told


class SlowDataset:
    """Reading a sample takes 4 ms of sleep, so a worker gives at most 250 a second."""

    fingerprint = "slow"

    def __len__(self) -> int:
        return 4000

    def read(self, row: int, epoch: int | None) -> dict[str, torch.Tensor]:
        time.sleep(0.004)
        return {"sample_id": torch.tensor(row)}


@pytest.mark.slow
def test_a_loader_that_is_too_slow_is_told_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1})
    with rehearsal(small_config("max_steps=100000", "num_epochs=null"), quiet=True) as run:
        run.dataset = SlowDataset()
        found = loader_rates(run, needed=1e5)
    assert sorted(found.rates) == [0, 1, 2], "as configured, and one for each CPU"
    assert 0 < found.rates[1] <= 255
    assert 0 < found.rates[2] <= 510
    assert found.enough is None
    assert found.estimate == math.ceil(1.1e5 / max(found.rates[0], found.rates[1], found.rates[2] / 2))
    assert f"about {found.estimate}" in in_words(found, "cpu")


def test_what_is_enough_is_said() -> None:
    found = LoaderRates(100.0, {1: 80.0, 2: 150.0}, configured=1, enough=2, estimate=None, cpus=8)
    assert "data.num_workers=2 is enough (it is 1)" in in_words(found, "cuda")
    assert "same CPUs" in in_words(found, "cpu")


@pytest.mark.slow
def test_data_and_checkpoint(tmp_path: Path) -> None:
    found = benched(1, tmp_path, "--data", "--steps=2", "--warmup=1")
    assert found["needed"] > 0
    assert found["enough"] is not None or found["estimate"] > 0
    (cost,) = run_ranks(
        1, "-m", "accel_train", "bench", "--checkpoint", "--mebibytes=12", f"--folder={tmp_path}", "--json"
    )
    assert cost.exit_code == 0, cost.output
    assert json.loads(cost.output[cost.output.index("{\n") :])["mebibytes"] == pytest.approx(12, rel=0.01)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "needs a configuration file"),
        (["--checkpoint", "configs/quickstart.yaml"], "CONFIG says nothing about --checkpoint"),
        (["--checkpoint", "--folder", "not_there"], "--folder: not_there is no folder"),
        (["--checkpoint", "--steps=3"], "--steps says nothing about --checkpoint"),
        (["configs/quickstart.yaml", "--mebibytes=3"], "--mebibytes says nothing about training"),
        (["configs/quickstart.yaml", "--data", "--rounds=3"], "--rounds says nothing about --data"),
        (["--data", "--checkpoint"], "not allowed with"),
        (["configs/quickstart.yaml", "--steps=0"], "whole number above 0"),
    ],
)
def test_what_would_be_ignored_is_refused(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *arguments]) == 2
    assert said in capsys.readouterr().err
