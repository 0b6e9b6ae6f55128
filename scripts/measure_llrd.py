"""Does layer-wise learning-rate decay help on the sample? Trains both small configurations with and without it.

    python scripts/measure_llrd.py runs/llrd docs/llrd.json

Both variants get the same budget: each learning rate of LR_FACTORS with seed 0, then seeds 1 and 2 at the best one. A
finished run is not repeated, so the script can be stopped and started again.
"""

import json
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
WORKLOADS = {"A": "configs/small/chinese_clip.yaml", "B": "configs/small/dual_encoder_one_lr.yaml"}
DECAYS = {"one learning rate": (1.0, 1.0), "layer decay": (0.8, 0.9)}
"""Per layer, for the image and the text tower."""
LR_FACTORS = (0.5, 1.0, 2.0)
SEEDS = (0, 1, 2)
BASE_LR = {"A": (1.0e-3, 1.0e-3), "B": (2.0e-3, 1.0e-3)}
"""Of the image and the text tower, at factor 1."""
NUM_EPOCHS = 4
SCORE = "text_to_image_mean_recall"
PARALLEL_RUNS = 2


def score(folder: Path, workload: str, decays: tuple[float, float], factor: float, seed: int) -> float:
    """The score after the last step, of a run that is made if it is not there."""
    settings = [
        f"num_epochs={NUM_EPOCHS}",
        f"run_dir={folder}",
        f"seed={seed}",
        "compute.num_threads=1",
        "data.num_workers=0",
    ]
    settings += ["evaluation.at_start=false", "evaluation.evaluate_every=null", "checkpoint.save_every=null"]
    for tower, decay, base_lr in zip(("image", "text"), decays, BASE_LR[workload], strict=True):
        settings.append(f"optimizer.towers.{tower}.lr={factor * base_lr}")
        settings.append(f"optimizer.towers.{tower}.layer_decay={decay}")
    command = [sys.executable, "-m", "accel_train", "train", WORKLOADS[workload], *settings]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return float([row for row in rows if row["split"] == "valid"][-1][SCORE])


def main(runs: Path, output: Path) -> None:
    results = []
    with ThreadPoolExecutor(PARALLEL_RUNS) as pool:
        for workload in WORKLOADS:
            for variant, decays in DECAYS.items():

                def run(factor: float, seed: int) -> float:
                    folder = runs / f"{workload}_{decays[0]}_{factor}_{seed}"  # noqa: B023 (used before the next turn)
                    return score(folder, workload, decays, factor, seed)  # noqa: B023

                tuned = dict(zip(LR_FACTORS, pool.map(run, LR_FACTORS, [0] * len(LR_FACTORS)), strict=True))
                best = max(tuned, key=lambda factor: tuned[factor])
                others = list(pool.map(run, [best] * (len(SEEDS) - 1), SEEDS[1:]))
                scores = [tuned[best], *others]
                results.append(
                    {
                        "workload": workload,
                        "variant": variant,
                        "layer_decay": decays,
                        "score_by_lr_factor_seed_0": tuned,
                        "best_lr_factor": best,
                        "scores": scores,
                        "mean": statistics.mean(scores),
                        "stdev": statistics.stdev(scores),
                    }
                )
                output.write_text(json.dumps(results, indent=1) + "\n")
                print(f"{workload} {variant}: {tuned} → {best}: {scores}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
