"""A trained dual encoder that turns queries into features."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accel_train.config.contrastive import ContrastiveConfig
from accel_train.data.dataset import Dataset
from accel_train.data.loader import Request, RowReader
from accel_train.data.loose_files import TextLines
from accel_train.data.pairs import caption_tokenizer
from accel_train.data.text import CaptionTokenizer
from accel_train.data.transforms import evaluation_image
from accel_train.engine.build import build_engine
from accel_train.engine.engine import Engine
from accel_train.errors import UserError
from accel_train.tools.embed import features_of
from accel_train.tools.prompts import PLACE
from accel_train.tools.trained import Trained, open_config, open_trained


class Encoder:
    """The model on its device. Not for several threads at once."""

    def __init__(self, engine: Engine, trained: Trained, templates: Sequence[str]) -> None:
        assert isinstance(trained.task.config, ContrastiveConfig)
        self.engine = engine
        self.config = trained.task.config
        self.model: nn.Module = trained.model
        self.source = trained.source
        self.templates = tuple(templates)
        self.batch_size = self.config.evaluation.batch_size or self.config.data.micro_batch_size
        self._tokenizer: CaptionTokenizer = caption_tokenizer(self.config.data)

    def texts(self, texts: Sequence[str]) -> Tensor:
        """(n, D), L2-normalised: of each text, the mean over the templates with the text put in."""
        prompts = [template.replace(PLACE, text) for text in texts for template in self.templates]
        features = self._features("text", TextLines(prompts, self._tokenizer))
        if len(self.templates) == 1:
            return features
        return F.normalize(features.unflatten(0, (len(texts), len(self.templates))).mean(1), dim=-1)

    def images(self, images: Sequence[bytes]) -> Tensor:
        """(n, D), L2-normalised, of encoded images. Raises UnreadableImage."""
        data = self.config.data
        pixels = [evaluation_image(image, data.image_size, data.resize, data.decoding) for image in images]
        batches = [torch.stack(pixels[at : at + self.batch_size]) for at in range(0, len(pixels), self.batch_size)]
        return torch.cat([features_of(self.engine, "image", {"pixel_values": b}, len(b)) for b in batches])

    def _features(self, kind: str, dataset: Dataset) -> Tensor:
        reader, pieces = RowReader(dataset), []
        for start in range(0, len(dataset), self.batch_size):
            rows = range(start, min(start + self.batch_size, len(dataset)))
            columns = reader[Request(tuple(rows), None)].columns
            pieces.append(features_of(self.engine, kind, columns, len(rows)))
        return torch.cat(pieces)


@contextmanager
def open_encoder(
    source: str, *, templates: Sequence[str] = (PLACE,), checkpoint: str | None = None, overrides: Sequence[str] = ()
) -> Iterator[Encoder]:
    """Opens a run, an export or published weights, as `embed` does, on CUDA if there is any. Raises UserError."""
    config = open_config(source, list(overrides))
    if not isinstance(config, ContrastiveConfig):
        raise UserError(f"{source}: the task {config.task} has no features of images and texts to search by.")
    engine = build_engine(config, for_evaluation=True)
    try:
        if engine.world_size > 1:
            raise UserError(
                f"search is one process, and {engine.world_size} were started. Over several, let `accel-train embed` write "
                "a file, and search in that with --features."
            )
        trained = open_trained(source, config, checkpoint=checkpoint)
        engine.hold(trained.model, precision=config.precision)
        engine.bare_model().eval()
        yield Encoder(engine, trained, templates)
    finally:
        engine.close()
