"""Rated images made on the spot: squares of a colour, blurred; quality is sharpness, consistency the colour's name."""

import csv
import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from accel_train.data.readers.ratings import RatingColumns
from accel_train.tools.imports.ratings import import_ratings

COLOURS = {"红色": (200, 30, 30), "绿色": (30, 180, 60), "蓝色": (40, 60, 210), "黄色": (220, 200, 40)}
MOST_BLUR = 4.0


def picture(index: int, colour: tuple[int, int, int], blur: float, size: int = 32) -> bytes:
    """PNG of a chequered square on white."""
    random = np.random.default_rng(index)
    pixels = np.full((size, size, 3), 255, dtype=np.uint8)
    left, top = random.integers(2, 8, 2)
    rows, columns = np.mgrid[top : top + 22, left : left + 22]
    dark = ((rows // 2 + columns // 2) % 2)[..., None].astype(np.uint8)
    pixels[top : top + 22, left : left + 22] = np.asarray(colour, dtype=np.uint8) // (1 + dark)
    stream = io.BytesIO()
    Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(blur)).save(stream, "PNG")
    return stream.getvalue()


def write_ratings(folder: Path, num_rows: int = 24, *, every_explained: int = 2, seed: int = 0) -> Path:
    """images/ and ratings.csv in `folder`: ratings from 1 to 5, an explanation in every so many rows."""
    (folder / "images").mkdir(parents=True)
    random = np.random.default_rng(seed)
    names = list(COLOURS)
    with (folder / "ratings.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "prompt", "mos_quality", "mos_consistency", "explanation"])
        for index in range(num_rows):
            shown, told = random.choice(names), random.choice(names)
            blur = float(random.uniform(0, MOST_BLUR))
            (folder / "images" / f"{index:03d}.png").write_bytes(picture(index, COLOURS[shown], blur))
            quality = 5 - 4 * blur / MOST_BLUR
            explanation = f"blur {blur:.0f}" if index % every_explained == 0 else ""
            consistency = 4.5 if shown == told else 1.5
            table.writerow([f"{index:03d}.png", told, f"{quality:.3f}", consistency, explanation])
    return folder


def write_dataset(folder: Path, num_rows: int = 60) -> Path:
    """An imported dataset with the splits train and valid, and a tokenizer."""
    source = write_ratings(folder.with_name(f"{folder.name}_source"), num_rows)
    import_ratings(
        str(source),
        str(folder),
        columns=RatingColumns(),
        valid_share=0.25,
        rating_range=(1.0, 5.0),
        build_tokenizer=60,
        show_progress=False,
    )
    return folder
