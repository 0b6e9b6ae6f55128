"""Tiny data of every kind, and tiny weights with a tokenizer, for configurations that `init` writes."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from accel_train.data.text import caption_vocabulary, save_tokenizer
from accel_train.tools.imports.pairs import import_data
from tests import labelled, rated, spoken

NUM_PAIRS = 48


def write_pairs(folder: Path) -> Path:
    """A table of images with two captions each."""
    (folder / "images").mkdir(parents=True)
    with (folder / "pairs.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "text"])
        for index in range(NUM_PAIRS // 2):
            name, colour = list(rated.COLOURS.items())[index % 4]
            (folder / "images" / f"{index}.png").write_bytes(rated.picture(index, colour, 0.0))
            table.writerow([f"images/{index}.png", f"{name}方块{index}"])
            table.writerow([f"images/{index}.png", f"一个{name}的图"])
    return folder / "pairs.csv"


def write_imported_pairs(folder: Path) -> Path:
    source = write_pairs(folder.with_name(f"{folder.name}_source"))
    import_data(str(source), str(folder), valid_share=0.2, build_tokenizer=60, show_progress=False)
    return folder


WRITERS: dict[str, Callable[[Path], Path]] = {
    "chinese_clip": write_imported_pairs,
    "dual_encoder": write_imported_pairs,
    "scorer": rated.write_dataset,
    "sequence_classification": labelled.write_dataset,
    "multimodal_alignment": spoken.write_dataset,
    "multimodal_llm": spoken.write_dataset,
}


@pytest.fixture(scope="session")
def data_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """data_of(workload): a dataset folder, made once."""
    made: dict[Callable[[Path], Path], Path] = {}

    def of(workload: str) -> str:
        writer = WRITERS[workload]
        if writer not in made:
            made[writer] = writer(tmp_path_factory.mktemp("init") / workload)
        return str(made[writer])

    return of


def put_tokenizer(folder: Path) -> None:
    """A WordPiece tokenizer of fewer than a hundred tokens beside weights."""
    aside = folder.with_name(f"{folder.name}_tokenizer")
    save_tokenizer(caption_vocabulary(["红色方块", "绿色的图", "red left", "the song"], 80), aside)
    shutil.copytree(aside, folder, dirs_exist_ok=True)
