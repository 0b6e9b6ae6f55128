"""Where a run's tokenizer lies, and its files beside an exported model."""

import shutil
import tempfile
from pathlib import Path

from accel_train.data.arrow_split import dataset_folder
from accel_train.data.text import read_vocabulary, save_tokenizer
from accel_train.errors import UserError

DATASET_TOKENIZER = "dataset:tokenizer"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)


def find_tokenizer(tokenizer: str, path: str) -> str:
    """The folder or file that `data.tokenizer` names, for the dataset at `data.path`."""
    if tokenizer != DATASET_TOKENIZER:
        return tokenizer
    folder = dataset_folder(path) / "tokenizer"
    if not folder.is_dir():
        raise UserError(
            f"data.tokenizer is {DATASET_TOKENIZER}, but {path} holds no tokenizer. Import it with "
            "--build-tokenizer, or name a tokenizer folder or vocabulary file.",
            code="AT504",
        )
    return str(folder)


def export_tokenizer(source: str, folder: str) -> None:
    """Puts the tokenizer of a folder or vocabulary file into a folder that transformers' AutoTokenizer loads."""
    if Path(source).is_dir():
        _copy(Path(source), Path(folder))
        return
    with tempfile.TemporaryDirectory() as aside:
        made = Path(aside) / "tokenizer"
        save_tokenizer(read_vocabulary(Path(source)), made)
        _copy(made, Path(folder))


def _copy(source: Path, folder: Path) -> None:
    # By name: a tokenizer often lies beside a model, whose weights and configuration must not land on ours.
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
