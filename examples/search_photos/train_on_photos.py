"""From a folder of images with captions to a model that searches it: import, plan, train, evaluate.

    python make_photos.py work/photos
    python train_on_photos.py work/photos
    python search_photos.py work/photos --query 红色的花 --sheet work/found.png

Every step is also a command: `accel-train import`, `plan`, `train`, `evaluate`.
"""

import argparse
from pathlib import Path

from accel_train.config.load import load_config
from accel_train.tools.evaluation import evaluate_command
from accel_train.tools.imports.pairs import import_data
from accel_train.tools.imports.summary import print_import
from accel_train.tools.plan.command import plan
from accel_train.train import train

CONFIG = Path(__file__).with_name("photos.yaml")


def train_on_photos(photos: str, work: str, overrides: list[str]) -> dict[str, float]:
    """Leaves a dataset and a run in the folder `work`. Returns the scores on the images that were held out."""
    summary = import_data(photos, f"{work}/dataset", valid_share=0.1, build_tokenizer=2000)
    print_import(summary, as_json=False)

    where = [f"data.path={work}/dataset", f"run_dir={work}/run", f"model.text.config.vocab_size={summary.vocab_size}"]
    config = load_config(CONFIG, [*where, *overrides])
    plan(config)  # which parameters learn how fast, before anything is computed
    train(config)
    return evaluate_command(
        config.run_dir, split=None, overrides=[], as_json=False, contact_sheet=None, predictions=None, checkpoint="best"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", help="folder of images, each with a text file of its captions beside it")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    parser.add_argument("--work", default="work", help="folder for the dataset and the run")
    arguments = parser.parse_args()
    train_on_photos(arguments.photos, arguments.work, arguments.overrides)
