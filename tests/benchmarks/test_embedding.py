"""`accel-train embed` beside the forward pass alone."""

from collections.abc import Callable
from itertools import count
from pathlib import Path

import torch
from torch import Tensor

from accel_train.config.contrastive import ContrastiveConfig
from accel_train.config.load import load_config
from accel_train.data.dataset import Dataset
from accel_train.data.loader import Request
from accel_train.data.pairs import ImageDataset
from accel_train.engine.build import build_engine
from accel_train.tasks.build import build_task
from accel_train.tools.bench.figures import Figure, in_turns, ratio_figure
from accel_train.tools.embed import Inputs, compute, replies_for
from accel_train.tools.feature_blocks import Parts, cut_into_blocks
from tests.benchmarks.test_loop import VIT

NUM, BATCH = 512, 32


class Repeated:
    """So many rows of a dataset, from the first again where it has fewer."""

    def __init__(self, dataset: Dataset) -> None:
        self.fingerprint = dataset.fingerprint
        self._dataset = dataset

    def __len__(self) -> int:
        return NUM

    def read(self, row: int, epoch: int | None) -> dict[str, Tensor]:
        return self._dataset.read(row % len(self._dataset), epoch)


def test_embedding(record: Callable[[Figure], None], tmp_path: Path) -> None:
    config = load_config(VIT[0], [*VIT[1:], "data.num_workers=1"])
    assert isinstance(config, ContrastiveConfig)
    images = Repeated(ImageDataset(config.data, "train"))
    blocks = cut_into_blocks("image", NUM, BATCH)
    requests = [Request(tuple(rows), None) for block in blocks for rows in block.batches()]
    kept = [
        {name: column.clone() for name, column in reply.columns.items()}
        for reply in replies_for(images, requests, config)
    ]
    engine = build_engine(config, for_evaluation=True)
    try:
        engine.hold(build_task(config).build_model(), precision=config.precision)
        folders = (tmp_path / str(number) for number in count())
        inputs = Inputs({"image": images}, {}, None, "")

        def embedded() -> None:
            folder = next(folders)
            folder.mkdir()
            compute(engine, config, inputs, {"image": blocks}, Parts(folder), 0)

        @torch.no_grad()
        def bare() -> None:
            torch.cat([engine.model(batch)["image_features"] for batch in kept])

        engine.bare_model().eval()
        seconds = in_turns({"embed": embedded, "bare": bare}, rounds=4)
    finally:
        engine.close()
    how = (
        f"images/s of `embed` (reading with one worker, forward passes, writing) over those of forward passes on batches in "
        f"memory: {NUM:,} images of 64 px through a 12-layer ViT-tiny, batches of {BATCH}, one thread"
    )
    record(ratio_figure("evaluation/embed_to_forward", seconds["bare"], seconds["embed"], goal=0.95, how=how))
