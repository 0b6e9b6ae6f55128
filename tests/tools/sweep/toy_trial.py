"""Stands in for `python -m accel_train train CONFIG` in tests of sweeps: a score that is known, in a tenth of a second.

The score is that of a hill over two keys with its top, 1.0, at lr 1e-3 of the tower text and its layer_decay 0.9.
The key seed says what else happens: 1 fails with a message, 2 dies without a word, 3 gives a score of NaN.
"""

import json
import math
import os
import sys
import time
from pathlib import Path

import yaml


def main() -> int:
    config = yaml.safe_load(Path(sys.argv[-1]).read_text(encoding="utf-8"))
    run_dir = Path(config["run_dir"])
    evaluations = int(os.environ.get("TOY_EVALUATIONS", "3"))
    pause = float(os.environ.get("TOY_PAUSE", "0"))
    with (run_dir / "starts").open("a", encoding="utf-8") as starts:
        starts.write(f"{os.getpid()}\n")
    print(f"toy trial with seed {config['seed']}", flush=True)
    if config["seed"] == 1:
        return leave("refused", "data.path: there is no such dataset.", 1)
    if config["seed"] == 2:
        raise RuntimeError("out of luck")
    (run_dir / "checkpoints").mkdir(exist_ok=True)
    metrics = run_dir / "metrics.jsonl"
    done = len(metrics.read_text(encoding="utf-8").splitlines()) if metrics.exists() else 0
    top = math.nan if config["seed"] == 3 else score(config)
    for number in range(done, evaluations + 1):
        time.sleep(pause)
        if (run_dir / "STOP").exists() and number > 1:
            return leave("stopped", f"stopped by the file STOP at step {10 * number}", 1)
        row = {"step": 10 * number, "split": "valid", "text_to_image_mean_recall": top * number / evaluations}
        with metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    return leave("done", "", 0)


def score(config: dict) -> float:
    text = next(tower for tower in config["optimizer"]["towers"] if tower["name"] == "text")
    return 1 - 0.2 * (math.log10(float(text["lr"])) + 3) ** 2 - 4 * (float(text["layer_decay"]) - 0.9) ** 2


def leave(word: str, message: str, code: int) -> int:
    """As accel_train does it; the exit code is that of a launcher."""
    Path(os.environ["ACCEL_TRAIN_OUTCOME"]).write_text(f"{word} {message}\n", encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main())
