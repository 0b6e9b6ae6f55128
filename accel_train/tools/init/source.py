"""What DATA is: a dataset folder already, or something that must be imported first, and by which command."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from accel_train.data.arrow_split import SAMPLE_PREFIX
from accel_train.data.readers import labelled_texts, ratings
from accel_train.data.split_import import VALID_SPLIT
from accel_train.errors import UserError
from accel_train.tools.imports.pairs import find_source

VALID_SHARE = {"contrastive": 0.1, "sequence_classification": 0.1, "scorer": 0.2}
"""Share of a source with one split that is kept for validation. A recording's split is the source's own."""
TOKENIZER_SIZE = 8000


@dataclass(frozen=True)
class Import:
    """How a source would be imported."""

    source: str
    output: str
    made_for: str
    valid_share: float | None
    build_tokenizer: int | None
    images: str | None

    def arguments(self) -> list[str]:
        """Of `accel-train import`."""
        words = [self.source, self.output]
        words += [] if self.made_for == "contrastive" else ["--task", self.made_for]
        words += [] if self.made_for != "multimodal_llm" else ["--images", self.images or "IMAGES"]
        words += [] if self.valid_share is None else ["--valid-share", str(self.valid_share)]
        return words + ([] if self.build_tokenizer is None else ["--build-tokenizer", str(self.build_tokenizer)])

    def command(self) -> str:
        return f"accel-train import {shlex.join(self.arguments())}"


def needed_import(data: str, made_for: str, *, images: str | None, with_tokenizer: bool) -> Import | None:
    """None for a dataset folder, or `sample:NAME`. Raises UserError for what no import reads."""
    path = Path(data)
    if data.startswith(SAMPLE_PREFIX) or (path / "dataset.json").is_file():
        return None
    if not path.exists():
        raise UserError(f"{data} does not exist. Give a dataset folder, or files that `accel-train import` reads.")
    if made_for == "scorer":
        splits = list(ratings.find_tables(path, None))
    elif made_for == "sequence_classification":
        finders = {name: find for name, (find, _) in labelled_texts.FORMATS.items()}
        splits = list(find_source(path, None, None, finders)[1])
    elif made_for == "contrastive":
        splits = list(find_source(path, None, None)[1])
    else:
        splits = []
    has_one = len(splits) == 1 and VALID_SPLIT not in splits
    share = VALID_SHARE.get(made_for) if has_one else None
    return Import(data, str(_output(path)), made_for, share, TOKENIZER_SIZE if with_tokenizer else None, images)


def _output(source: Path) -> Path:
    """A folder below data/ that is not there yet."""
    name = re.sub(r"[^\w-]+", "_", source.resolve().stem if source.is_file() else source.resolve().name) or "dataset"
    for folder in (Path("data") / name, Path("data") / f"{name}_dataset"):
        if not folder.exists():
            return folder
    raise UserError(f"{Path('data') / name} and {name}_dataset exist. Give the dataset folder, or import by hand.")
