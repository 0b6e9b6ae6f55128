"""Real jobs on a real Slurm: stopped for a time limit, preempted, bereft of a node, and in the end as never stopped."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.conftest import TIMING, Experiment, ForkServer
from tests.slurm.conftest import Cluster, experiment
from tests.slurm.page import Page

pytestmark = pytest.mark.timeout(900)

WriteConfig = Callable[..., Path]


def rows(run: Path) -> list[dict[str, float]]:
    """Whole lines of metrics.jsonl, without what depends on the clock."""
    path = run / "metrics.jsonl"
    lines = path.read_text().rpartition("\n")[0].splitlines() if path.exists() else []
    return [{key: value for key, value in json.loads(line).items() if key not in TIMING} for line in lines]


def step(run: Path) -> int:
    """The last step that was logged."""
    return int(rows(run)[-1]["step"]) if rows(run) else 0


def saved(run: Path) -> int:
    """The step of the newest checkpoint."""
    newest = run / "checkpoints" / "latest"
    return int(newest.readlink().name[5:]) if newest.is_symlink() else 0


def endings(output: Path) -> list[str]:
    """What became of each start of a job, in its script's words."""
    lines = output.read_text().splitlines()
    return [line.partition("the run: ")[2].partition(" at step")[0].strip() for line in lines if "the run: " in line]


def test_a_job_outlives_its_time_limit_a_preemption_and_a_node(
    cluster: Cluster, write_config: WriteConfig, page: Page, server: Callable[[], ForkServer], tmp_path: Path
) -> None:
    saving = {"checkpoint": {"save_every": "20 steps"}}
    run = write_config("experiment.yaml", "runs/experiment", **saving)
    assert "#SBATCH --nodes=2\n#SBATCH --gpus-per-node=2\n" in cluster.run(page.line("prints the script"))
    job = cluster.run(page.line("checks, submits")).strip()
    output = run / f"slurm-{job}.out"

    def is_requeued(times: int) -> None:
        cluster.wait_for(lambda: cluster.about(job)["Restarts"] == str(times), f"restart {times}", output)

    # The time limit is near: Slurm signals the batch script alone.
    cluster.wait_for(lambda: step(run) > 2, "the first steps", output)
    assert job in cluster.run(page.line("your jobs"))
    assert cluster.run(page.line("what the run says")).count("loss") == 3
    cluster.run(f"scancel --batch --signal=USR1 {job}")
    is_requeued(1)
    assert saved(run) == step(run) > 2
    assert f"4 ranks on node1 node2, node1:{20000 + int(job)}" in output.read_text()

    # A job of a partition with precedence takes the nodes: Slurm signals the launchers alone.
    before = saved(run)
    cluster.wait_for(lambda: step(run) > before, "a step after the first restart", output)
    urgent = "sbatch --parsable --partition=high --nodes=2 --exclusive --output=/dev/null --wrap='sleep 1'"
    urgent_job = cluster.run(urgent).strip()
    is_requeued(2)
    assert saved(run) == step(run) > before
    cluster.wait_for_state(urgent_job, "COMPLETED", output=output)

    # A node dies: nobody saves, and the newest checkpoint counts.
    before = saved(run)
    cluster.wait_for(lambda: saved(run) > before, "a checkpoint after the second restart", output)
    cluster.control("kill-node", str(cluster.folder), "2")
    is_requeued(3)
    last = step(run) + 10
    write_config("experiment.yaml", "runs/experiment", **saving, max_steps=last)
    cluster.control("start-node", str(cluster.folder), "2")
    never_stopped = Experiment(server(), tmp_path, experiment("run", **saving, max_steps=last))
    never_stopped.config["data"]["path"] = str(cluster.shared / "dataset")
    never_stopped.finish(ranks=4)
    cluster.wait_for_state(job, "COMPLETED", "FAILED", "CANCELLED", output=output)
    assert cluster.about(job)["JobState"] == "COMPLETED", output.read_text()
    words = ["stopped stopped by the file STOP", "stopped stopped by SIGTERM", "done"]
    assert [ending for ending in endings(output) if ending in words] == words, output.read_text()
    assert rows(run) == rows(never_stopped.run_dir)
