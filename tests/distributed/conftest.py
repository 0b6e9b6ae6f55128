"""What ran under every engine, each job once for the whole session, and the plain training it must equal."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from accel_train.config.contrastive import ClipModelSection, ContrastiveConfig
from accel_train.config.schema import RunConfig
from accel_train.data.readers.ratings import RatingColumns
from accel_train.tasks.contrastive import ContrastiveTask
from accel_train.tools.imports.ratings import import_ratings
from tests.distributed.pairs import NUM_PAIRS, write_pairs
from tests.distributed.ranks import run_ranks
from tests.distributed.reference import Reference, train_plainly
from tests.distributed.scenarios import (
    GLOBAL_BATCH,
    NUM_TEXTS,
    RATED,
    SPOKEN,
    TEACHER,
    TEXTS_FOLDER,
    config_of,
    runs_of_launch,
)
from tests.labelled import write_dataset as write_labelled
from tests.rated import write_ratings
from tests.spoken import write_dataset as write_spoken


@dataclass(frozen=True, slots=True)
class Observation:
    """One run, as rank 0 saw it."""

    metrics: list[dict[str, Any]]
    """Training lines of metrics.jsonl, one for each step."""
    log: str
    found: dict[str, Any]
    """What the worker read from the engine."""

    @property
    def losses(self) -> list[float]:
        return [line["loss"] for line in self.metrics]

    @property
    def weights(self) -> dict[str, Tensor]:
        weights: dict[str, Tensor] = self.found["weights"]
        return weights


Observed = Callable[[str, int, str], Observation]


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = write_pairs(tmp_path_factory.mktemp("data") / "pairs")
    write_teacher(folder)
    write_rated(folder)
    write_spoken(folder / SPOKEN, train=NUM_PAIRS, valid=7)
    write_labelled(folder / TEXTS_FOLDER, train=NUM_TEXTS)
    return str(folder)


def write_rated(dataset: Path) -> None:
    """Rated images, every second one with an explanation."""
    source = write_ratings(dataset / "ratings", NUM_PAIRS)
    import_ratings(str(source), str(dataset / RATED), columns=RatingColumns(), build_tokenizer=110, show_progress=False)


def write_teacher(dataset: Path) -> None:
    """An exported model that is wider than the students and takes larger images."""
    config = config_of("info_nce", dataset=str(dataset), run_dir="unused", engine="ddp", micro_batch_size=GLOBAL_BATCH)
    assert isinstance(config, ContrastiveConfig) and isinstance(config.model, ClipModelSection)
    model = config.model.model_copy(update={"config": config.model.config | {"projection_dim": 24}})
    data = config.data.model_copy(update={"image_size": 24})
    task = ContrastiveTask(config.model_copy(update={"model": model, "data": data}))
    torch.manual_seed(99)
    task.export(task.build_model(), str(dataset / TEACHER))


@pytest.fixture(scope="session")
def observed(dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Observed:
    """observed(engine, world_size, "SCENARIO@K"). The first call for an engine runs all its scenarios, in one launch."""

    @cache
    def launch(name: str, world_size: int) -> tuple[Path, list[str]]:
        """Where the results lie, and the last words of ranks that failed."""
        out = tmp_path_factory.mktemp(f"{name}_{world_size}")
        ranks = run_ranks(
            world_size, "-m", "tests.distributed.worker", str(out), dataset, *runs_of_launch(name, world_size)
        )
        return out, [f"exit code {rank.exit_code}\n{rank.output[-4000:]}" for rank in ranks if rank.exit_code != 0]

    @cache
    def observe(engine: str, world_size: int, run: str) -> Observation:
        out, failures = launch(engine.partition("_")[0], world_size)
        assert not failures, "\n".join(failures)
        folder = out / engine / run
        found = torch.load(folder.with_name(f"{run}.pt"))
        assert "error" not in found, found["error"]
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        log = (folder / "run.log").read_text()
        return Observation([line for line in lines if line["split"] == "train"], log, found)

    return observe


@pytest.fixture(scope="session")
def configured(dataset: str) -> Callable[[str], RunConfig]:
    """configured(scenario): its configuration in one process with the whole batch."""
    return lambda scenario: config_of(
        scenario, dataset=dataset, run_dir="unused", engine="ddp", micro_batch_size=GLOBAL_BATCH
    )


@pytest.fixture(scope="session")
def reference(configured: Callable[[str], RunConfig]) -> Callable[..., Reference]:
    """reference(scenario, micro_batch_size): the plain training; see `train_plainly`."""

    @cache
    def train(scenario: str, micro_batch_size: int | None = None) -> Reference:
        return train_plainly(configured(scenario), micro_batch_size=micro_batch_size)

    return train
