"""A task whose loss adds up over tokens, with another number of targets in every sample.

`python -m tests.distributed.toy train CONFIG` is `accel-train` for a run of it.
"""

import torch
from torch import Tensor, nn

from accel_train.cli import run
from accel_train.tasks.task import Batch, Task

NAME = "tests.distributed.toy:TokenTask"
NUM_SAMPLES = 53
POISONED_SPLIT = "poisoned"
POISONED_ROW = 29
TOKENS, WIDTH = 6, 8


class TokenDataset:
    """Sample k has 1 + k % 6 targets. In the split `poisoned` one target of row 29 is not a number."""

    fingerprint = "tokens"

    def __init__(self, split: str) -> None:
        self.poisoned = split == POISONED_SPLIT

    def __len__(self) -> int:
        return NUM_SAMPLES

    def read(self, row: int, epoch: int | None) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(row)
        target = torch.randn(TOKENS, generator=generator)
        if self.poisoned and row == POISONED_ROW:
            target[0] = torch.nan
        return {
            "tokens": torch.randn(TOKENS, WIDTH, generator=generator),
            "target": target,
            "counts": torch.arange(TOKENS) < 1 + row % TOKENS,
            "sample_id": torch.tensor(row),
        }


class TokenModel(nn.Module):
    """Two blocks that engines may shard, and a head. Its gradients tell a wrong scale at once."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(2))
        self.head = nn.Linear(WIDTH, 1)

    def forward(self, batch: Batch) -> Batch:
        hidden = batch["tokens"]
        for layer in self.layers:
            hidden = layer(hidden)
        return {"values": self.head(hidden).sum(-1)}


class TokenTask(Task):
    """Mean squared error over the tokens that count."""

    score_names = ("negative_error",)

    def build_model(self) -> nn.Module:
        return TokenModel()

    def build_dataset(self, split: str) -> TokenDataset:
        return TokenDataset(split)

    def num_targets(self, batch: Batch) -> Tensor:
        return batch["counts"].sum()

    def losses(self, outputs: Batch, batch: Batch) -> dict[str, Tensor]:
        return {"error": (outputs["values"] - batch["target"])[batch["counts"]].square().mean()}

    def predictions(self, outputs: Batch, batch: Batch) -> Batch:
        return {"values": outputs["values"], "target": batch["target"]}

    def scores(self, predictions: dict[str, Tensor], split: str) -> dict[str, float]:
        return {"negative_error": -float((predictions["values"] - predictions["target"]).square().mean())}


if __name__ == "__main__":
    run()
