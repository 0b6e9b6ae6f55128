"""A folder of images with captions, to try the rest on: emoji from the sample inside the package.

    python make_photos.py work/photos --num-images 1000

writes PNG files, each with its captions beside it, one a line, in a text file of the same name. `accel-train import` reads
such a folder as it is; with photos of your own you start there.
"""

import argparse
from collections import defaultdict
from pathlib import Path

from accel_train.data.splits import open_split


def make_photos(folder: str, num_images: int) -> None:
    """Writes the first images of the sample, as many as asked for."""
    split = open_split("sample:emoji-zh", "train")
    captions: dict[int, list[str]] = defaultdict(list)
    for image_row, text_row in split.matches().tolist():
        captions[image_row].append(split.texts.value("text", text_row))
    Path(folder).mkdir(parents=True)
    for row in range(num_images):
        name = Path(folder) / split.images.value("image_id", row)
        name.with_suffix(".png").write_bytes(split.images.value("image", row))
        name.with_suffix(".txt").write_text("\n".join(captions[row]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--num-images", type=int, default=1000)
    arguments = parser.parse_args()
    make_photos(arguments.folder, arguments.num_images)
