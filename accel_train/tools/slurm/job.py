"""`accel-train slurm`: from a configuration and a few options to a batch script that is known to fit, or to a job."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from accel_train.config.rules import num_micro_batches
from accel_train.config.schema import RunConfig
from accel_train.errors import UserError
from accel_train.tools.slurm.checks import (
    check_partition,
    check_run_dir,
    doubts_of_slurm,
    is_there,
    seconds,
    submit,
)
from accel_train.tools.slurm.script import LAUNCH_FOLDER, Job, fill_in


@dataclass(frozen=True, slots=True)
class Asked:
    """The command's options."""

    nodes: int
    gpus: int | None
    """On each node; None where ranks run on CPU cores."""
    cpu_ranks: int | None
    cpus: int | None
    time: str
    partition: str | None
    account: str | None
    job_name: str | None
    after: str | None
    options: list[str]

    @property
    def ranks_per_node(self) -> int:
        return self.gpus or self.cpu_ranks or 1


def slurm(config: RunConfig, path: str, overrides: list[str], asked: Asked, *, submitting: bool, as_json: bool) -> None:
    """Prints the script, or the job's number if it is submitted. Raises UserError if the job could not run."""
    ranks = asked.nodes * asked.ranks_per_node
    micro_batches = num_micro_batches(config, ranks)
    seconds(asked.time)
    run_dir = Path(config.run_dir)
    script = fill_in(describe(config, path, overrides, asked))
    if submitting and not is_there("sbatch"):
        raise UserError("--submit: sbatch is not installed here. Print the script, and submit it on the cluster.")
    if checked := is_there("sinfo"):
        check_partition(asked.partition, asked.time, asked.nodes)
    warnings = [warning for warning in [check_run_dir(run_dir)] if warning]  # last, since it makes the folder
    if not checked:
        warnings.append("partition and time limit are not checked, since sinfo is not installed here.")
    if not submitting and is_there("sbatch") and (doubts := doubts_of_slurm(script)):
        warnings.append(doubts)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    job = None
    if submitting:
        file = run_dir / "train.sbatch"
        file.write_text(script, encoding="utf-8")
        job = submit(file)
        print(
            f"submitted job {job}: {ranks} ranks on {asked.nodes} nodes, {micro_batches} micro-batches a step each; it "
            f"writes to {run_dir}/slurm-{job}.out",
            file=sys.stderr,
        )
    if as_json:
        found = {"job": job, "ranks": ranks, "micro_batches": micro_batches, "run_dir": config.run_dir}
        print(json.dumps({**found, "warnings": warnings, "script": script}, indent=1, ensure_ascii=False))
    else:
        print(job if job is not None else script, end="\n" if job is not None else "")


def describe(config: RunConfig, path: str, overrides: list[str], asked: Asked) -> Job:
    """The settings of the script for this configuration."""
    ranks = asked.ranks_per_node
    return Job(
        directives={
            "job-name": asked.job_name or Path(config.run_dir).name or "accel-train",
            "nodes": str(asked.nodes),
            "gpus-per-node": str(asked.gpus) if asked.gpus else None,
            "cpus-per-task": str(asked.cpus or ranks * (1 + config.data.num_workers)),
            "time": asked.time,
            "output": f"{config.run_dir}/slurm-%j.out",
            "chdir": str(Path.cwd()),
            "partition": asked.partition,
            "account": asked.account,
            "dependency": f"afterok:{asked.after}" if asked.after else None,
            "kill-on-invalid-dep": "yes" if asked.after else None,
        },
        settings={
            "config": path,
            "run_dir": config.run_dir,
            "changes": [change for change in overrides if not change.startswith("run_dir=")],
            "ranks_per_node": str(ranks),
            "launch_file": str(LAUNCH_FOLDER / ("ddp.yaml" if asked.gpus else "cpu.yaml")),
            "python": sys.executable,
        },
        added=asked.options,
    )
