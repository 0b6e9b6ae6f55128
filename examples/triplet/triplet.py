"""Texts on a map: a triplet loss brings an anchor nearer to its positive than to its negative."""

import zlib
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from accel_train.config.schema import RunConfig, Section
from accel_train.data.dataset import UnreadableSample
from accel_train.errors import UserError
from accel_train.tasks.task import Batch, Task

COLUMNS = ("anchor", "positive", "negative")


class ModelSection(Section):
    buckets: Annotated[int, Field(ge=1)] = 4096
    width: Annotated[int, Field(ge=1)] = 64


class TripletConfig(RunConfig):
    model: ModelSection = ModelSection()
    margin: Annotated[float, Field(gt=0)]


class Triplets:
    """Lines of PATH/SPLIT.tsv: anchor, positive, negative. Columns: the three as letter counts (buckets,), and sample_id."""

    def __init__(self, path: str, split: str, buckets: int) -> None:
        self.file, self.buckets = Path(path) / f"{split}.tsv", buckets
        if not self.file.is_file():
            raise UserError(f"data.path: {self.file} is not there. Each split is a file of triplets.")
        text = self.file.read_text(encoding="utf-8")
        self.lines = text.splitlines()
        self.fingerprint = f"triplets {zlib.crc32(text.encode()):08x}"

    def __len__(self) -> int:
        return len(self.lines)

    def read(self, row: int, epoch: int | None) -> Batch:
        texts = self.lines[row].split("\t")
        if len(texts) != 3:
            raise UnreadableSample(f"{self.file}, line {row + 1}: {len(texts)} columns instead of 3")
        places = [torch.tensor([ord(letter) % self.buckets for letter in text]) for text in texts]
        counts = [torch.bincount(place, minlength=self.buckets).float() for place in places]
        return dict(zip(COLUMNS, counts, strict=True)) | {"sample_id": torch.tensor(row)}


class TextMap(nn.Module):
    def __init__(self, section: ModelSection) -> None:
        super().__init__()
        self.embed = nn.Linear(section.buckets, section.width, bias=False)

    def forward(self, batch: Batch) -> Batch:
        return {name: F.normalize(self.embed(batch[name]), dim=-1) for name in COLUMNS}


class TripletTask(Task):
    config: TripletConfig
    config_class = TripletConfig
    score_names = ("accuracy",)

    def build_model(self) -> nn.Module:
        return TextMap(self.config.model)

    def build_dataset(self, split: str) -> Triplets:
        return Triplets(self.config.data.path, split, self.config.model.buckets)

    def losses(self, outputs: Batch, batch: Batch) -> dict[str, Tensor]:
        return {"triplet": F.relu(self.config.margin - gain(outputs)).mean()}

    def predictions(self, outputs: Batch, batch: Batch) -> Batch:
        return {"gain": gain(outputs)}

    def scores(self, predictions: dict[str, Tensor], split: str) -> dict[str, float]:
        found = predictions["gain"].double()
        loss = F.relu(self.config.margin - found).mean()
        return {"accuracy": (found > 0).double().mean().item(), "loss": loss.item()}

    def export(self, model: nn.Module, folder: str) -> None:
        save_file(model.state_dict(), f"{folder}/model.safetensors")

    def load_pretrained(self, model: nn.Module, folder: str) -> None:
        model.load_state_dict(load_file(f"{folder}/model.safetensors"))


def gain(outputs: Batch) -> Tensor:
    """How much nearer, in cosine, the positive is to the anchor than the negative: (n,)."""
    return (outputs["anchor"] * (outputs["positive"] - outputs["negative"])).sum(-1)
