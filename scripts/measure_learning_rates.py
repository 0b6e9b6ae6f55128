"""Which learning rate does a small LLaMA from scratch want? Trains the small configuration at eight of them.

    python scripts/measure_learning_rates.py data/debian-sections runs/learning_rates docs/learning_rates.json

Three seeds each, all five epochs without early stopping, everything else as in the configuration. Beside them: always the
largest class, and logistic regression on TF-IDF weights of words. A finished run is not repeated, so the script can be
stopped and started again.
"""

import json
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from accel_train.data.labelled_split import open_labelled_split

ROOT = Path(__file__).parents[1]
CONFIG = "configs/small/sequence_classification.yaml"
RATES = ("1e-7", "1e-6", "1e-5", "2e-5", "1e-4", "1e-3", "2e-3", "3e-3")
SEEDS = (0, 1, 2)
PARALLEL_RUNS = 2
PENALTIES = (1.0, 4.0, 16.0)
"""Inverse strengths of regularisation that logistic regression is tried with."""


def one_run(data: Path, folder: Path, rate: str, seed: int) -> dict[str, float]:
    """Scores of a run that is made if it is not there."""
    settings = [
        f"data.path={data}",
        f"run_dir={folder}",
        f"seed={seed}",
        f"optimizer.towers.decoder.lr={rate}",
        "evaluation.early_stopping=null",
        "evaluation.at_start=false",
        "checkpoint.keep_last=1",
        "compute.num_threads=1",
    ]
    command = [sys.executable, "-m", "accel_train", "train", CONFIG, *settings]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    dev = [row for row in rows if row["split"] == "dev"]
    training = [row for row in rows if row["split"] == "train"]
    last_epoch = [row["loss"] for row in training if row["epoch"] == training[-1]["epoch"]]
    best = max(dev, key=lambda row: row["accuracy"])
    return {
        "best_dev_accuracy": best["accuracy"],
        "macro_f1_there": best["macro_f1"],
        "epoch_there": dev.index(best) + 1,
        "last_dev_accuracy": dev[-1]["accuracy"],
        "last_dev_loss": dev[-1]["loss"],
        "last_train_loss": statistics.mean(last_epoch),
    }


def baselines(data: Path) -> dict[str, dict[str, float]]:
    """Accuracy and macro F1 on dev of what needs no training loop. The penalty is chosen on dev too, as the rates are."""
    texts, labels = {}, {}
    for split in ("train", "dev"):
        samples = open_labelled_split(str(data), split).samples
        texts[split] = [samples.value("text", row) for row in range(len(samples))]
        labels[split] = samples.column("label")
    words = TfidfVectorizer(sublinear_tf=True, token_pattern=r"\b\w+\b")
    train, dev = words.fit_transform(texts["train"]), words.transform(texts["dev"])
    largest = np.full(len(labels["dev"]), np.bincount(labels["train"]).argmax())
    found = {"largest class": _scores(labels["dev"], largest)}
    fits = [LogisticRegression(C=penalty, max_iter=2000).fit(train, labels["train"]) for penalty in PENALTIES]
    tried = [_scores(labels["dev"], fit.predict(dev)) for fit in fits]
    found["TF-IDF and logistic regression"] = max(tried, key=lambda scores: scores["accuracy"])
    return found


def _scores(labels: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    return {
        "accuracy": float((labels == predicted).mean()),
        "macro_f1": float(f1_score(labels, predicted, average="macro")),
    }


def main(data: Path, runs: Path, output: Path) -> None:
    results = []
    with ThreadPoolExecutor(PARALLEL_RUNS) as pool:
        for rate in RATES:
            waiting = [pool.submit(one_run, data, runs / f"{rate}_{seed}", rate, seed) for seed in SEEDS]
            scores = [run.result() for run in waiting]
            mean = {name: statistics.mean(score[name] for score in scores) for name in scores[0]}
            spread = statistics.stdev(score["best_dev_accuracy"] for score in scores)
            results.append({"lr": float(rate), "seeds": scores, "mean": mean, "stdev_best_dev_accuracy": spread})
            text = json.dumps({"baselines": baselines(data), "learning_rates": results}, indent=1)
            output.write_text(text + "\n", encoding="utf-8")
            print(f"{rate}: {mean}", flush=True)


if __name__ == "__main__":
    main(*(Path(argument).resolve() for argument in sys.argv[1:4]))
