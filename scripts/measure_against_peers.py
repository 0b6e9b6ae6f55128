"""Runs accel_train and other trainers in turn on one machine, on the same model and data, and compares samples per second.

    python scripts/measure_against_peers.py classification --texts debian-sections --work /tmp/peers --output peers.json

Each side is started anew on two processes with one thread each (with --gpu on one device), ours and the peer's by turns; the
first steps of every run are left out. The environment needs the peer installed, or `--checkout` names its sources. None of
its code is kept.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "peers"))
import workloads
import yaml
from workloads import Command, Workload

ROOT = Path(__file__).parents[1]


Pairs = list[tuple[float, float]]


def samples_per_second(workload: Workload, times: Pairs, skipped: int) -> tuple[float, float]:
    """By the clock, and of processor time."""
    typical = statistics.mean if workload.is_ragged else statistics.median
    clock, processor = (
        workload.samples / typical([later - earlier for earlier, later in pairwise(column)])
        for column in zip(*times[skipped:], strict=True)
    )
    return clock, processor


def run_side(command: Command, ranks: int, times: Path, log: Path) -> Pairs:
    """When each of its steps ended."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, [ROOT, *command.paths, os.environ.get("PYTHONPATH", "")])),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }
    script = Path(__file__).parent / "peers" / command.script
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    with log.open("w") as output:
        failed = subprocess.run(
            [*launcher, str(script), str(times), *command.arguments],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        ).returncode
    if failed or not times.exists():
        sys.exit(f"{command.script} ended with exit code {failed}; see {log}")
    return [(float(clock), float(processor)) for clock, processor in map(str.split, times.read_text().splitlines())]


def compare(workload: Workload, folder: Path, rounds: int, skipped: int) -> dict[str, Any]:
    config = folder / f"{workload.name}.yaml"
    config.write_text(yaml.safe_dump(workload.ours))
    sides = {"ours": Command("run_ours.py", [str(config)]), "peer": workload.peer}
    rates: dict[str, Pairs] = {side: [] for side in sides}
    for turn in range(rounds):
        for side, command in sides.items():
            shutil.rmtree(folder / "runs", ignore_errors=True)
            times = folder / f"{workload.name}_{side}_{turn}.times"
            times.unlink(missing_ok=True)
            found = run_side(command, workload.ranks, times, folder / f"{workload.name}_{side}.log")
            rates[side].append(samples_per_second(workload, found, skipped))
            clock, processor = rates[side][-1]
            print(f"{workload.name} {side}: {clock:.1f} samples/s, {processor:.1f} a processor second", file=sys.stderr)
    ratios = [[a / b for a, b in zip(*pair, strict=True)] for pair in zip(rates["ours"], rates["peer"], strict=True)]
    clock, processor = (statistics.median(column) for column in zip(*ratios, strict=True))
    return {
        "workload": workload.name,
        "ratio": clock,
        "ratio_of_processor_time": processor,
        "ratios_by_round": ratios,
        "samples_per_second": rates,
    }


def chosen(options: argparse.Namespace) -> Workload:
    folder, steps = options.work, options.steps
    pairs = (options.pairs, options.vocabulary, folder, steps, options.accumulate)
    match options.comparison:
        case "classification":
            return workloads.classification(options.texts, folder, steps, options.sampling)
        case "chinese_clip":
            return workloads.chinese_clip(options.checkout, *pairs)
        case "open_clip":
            scale = workloads.SMALL
            if options.gpu:
                scale = replace(workloads.VIT_B_16, global_batch=options.global_batch, kept_graphs=options.kept_graphs)
            return workloads.open_clip(options.checkout, *pairs, scale=scale, variable_text=options.variable_text)
        case _:
            return workloads.sentence_transformers(*pairs)


def absolute(path: str) -> Path:
    return Path(path).resolve()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparison", choices=["classification", "chinese_clip", "open_clip", "sentence_transformers"])
    parser.add_argument("--work", type=absolute, required=True, help="folder for data, runs and logs")
    parser.add_argument("--texts", type=absolute, help="folder with train.txt, for classification")
    parser.add_argument(
        "--pairs", type=absolute, help="folder with train_imgs.tsv and train_texts.jsonl, for the others"
    )
    parser.add_argument("--vocabulary", type=absolute, help="WordPiece vocabulary of the captions")
    parser.add_argument("--checkout", type=absolute, help="sources of Chinese-CLIP or open_clip")
    parser.add_argument(
        "--path", type=absolute, action="append", default=[], help="folder on the peer's PYTHONPATH; repeatable"
    )
    parser.add_argument("--accumulate", type=int, default=1, help="micro-batches in a step")
    parser.add_argument(
        "--variable-text", action="store_true", help="open_clip pads captions to the longest of a batch"
    )
    parser.add_argument(
        "--gpu",
        action="store_true",
        help="open_clip at ViT-B/16 on one CUDA device, bf16, compiled",
    )
    parser.add_argument("--global-batch", type=int, default=1024, help="with --gpu")
    parser.add_argument("--kept-graphs", type=int, default=1, help="with --gpu: compute.kept_graphs of our side")
    parser.add_argument(
        "--sampling", choices=["random", "group_by_length"], default="random", help="of transformers' Trainer"
    )
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--skip", type=int, default=10, help="first steps of a run that do not count")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    if options.gpu and options.comparison != "open_clip":
        parser.error("--gpu is for open_clip")
    options.work.mkdir(parents=True, exist_ok=True)
    workload = chosen(options)
    workload.peer.paths += options.path
    print(json.dumps(compare(workload, options.work, options.rounds, options.skip), indent=1))


if __name__ == "__main__":
    main()
