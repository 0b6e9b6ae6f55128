"""Makes the embedded sample from the full emoji-zh data (96 px JPEGs in Chinese-CLIP's TSV and JSONL files).

    python scripts/make_sample.py SOURCE OUTPUT

Every image and caption is kept, at full size; images are stored as WebP instead of JPEG, which takes a third of the
space, and a tokenizer is built from the training captions. OUTPUT must not exist; NOTICE and licences are added by hand.
"""

import argparse
import base64
import io
import shutil
import tempfile
from pathlib import Path

from PIL import Image

from accel_train.tools.imports.pairs import import_data

QUALITY = 80
VOCAB_SIZE = 2000
"""An upper bound: the captions have fewer different characters and words."""


def reencode(encoded: str) -> str:
    """A base64 image as base64 WebP."""
    image = Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")
    stream = io.BytesIO()
    image.save(stream, "WEBP", quality=QUALITY, method=6)
    return base64.b64encode(stream.getvalue()).decode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        smaller = Path(folder) / arguments.source.name
        smaller.mkdir()
        for split in ("train", "valid"):
            with (
                (arguments.source / f"{split}_imgs.tsv").open() as source,
                (smaller / f"{split}_imgs.tsv").open("w") as out,
            ):
                for line in source:
                    image_id, encoded = line.rstrip("\n").split("\t")
                    out.write(f"{image_id}\t{reencode(encoded)}\n")
            shutil.copy(arguments.source / f"{split}_texts.jsonl", smaller)
        print(import_data(str(smaller), str(arguments.output), build_tokenizer=VOCAB_SIZE))


if __name__ == "__main__":
    main()
