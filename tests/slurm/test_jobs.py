"""Real jobs on a real Slurm: stopped for a time limit, preempted, bereft of a node, and in the end as never stopped."""

import csv
import json
import re
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
import yaml

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
    end = re.search(r"this Slurm job ends at (\S+ \S+);", output.read_text())
    assert end is not None
    hours = (datetime.fromisoformat(end[1]) - datetime.now()).total_seconds() / 3600
    assert 11.8 < hours <= 12
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
    # A node that has come back is signalled once more where Slurm was slow to forget the job's earlier start.
    with_one_more = [*words[:2], *words[1:]]
    assert [ending for ending in endings(output) if ending in words] in (words, with_one_more), output.read_text()
    assert rows(run) == rows(never_stopped.run_dir)


def test_a_user_ends_a_job_for_good(cluster: Cluster, write_config: WriteConfig, page: Page) -> None:
    """By the file or by scancel: the run saves, and the job is not started again. One rank goes on where four were."""
    run = write_config("experiment.yaml", "runs/experiment")
    for comment, state in (("saves and ends", "FAILED"), ("the same in a hurry", "CANCELLED")):
        before = saved(run)
        job = cluster.run("accel-train slurm experiment.yaml --nodes 1 --gpus 1 --submit").strip()
        output = run / f"slurm-{job}.out"
        cluster.wait_for(lambda before=before: step(run) > before, "a step", output)  # type: ignore[misc]
        cluster.run(page.line(comment))
        cluster.wait_for_state(job, state, output=output)
        assert saved(run) == step(run) > before, output.read_text()
        assert cluster.about(job)["Restarts"] == "0"
    assert not (run / "STOP").exists()


def test_the_second_phase_begins_when_the_first_is_done(
    cluster: Cluster, write_config: WriteConfig, page: Page
) -> None:
    first = write_config("heads.yaml", "runs/heads", max_steps=4)
    second = write_config("whole.yaml", "runs/whole", max_steps=4, initialize_from="runs/heads/checkpoints/latest")
    jobs = cluster.run(page.line("the second when the first")).split()
    assert len(jobs) == 2
    cluster.wait_for_state(jobs[1], "COMPLETED", "FAILED", "CANCELLED", output=second / f"slurm-{jobs[1]}.out")
    assert [cluster.about(job)["JobState"] for job in jobs] == ["COMPLETED", "COMPLETED"]
    assert (saved(first), saved(second)) == (4, 4)
    assert "weights from runs/heads/checkpoints/" in (second / "run.log").read_text()


def test_workers_of_an_array_share_a_search(cluster: Cluster, write_config: WriteConfig, page: Page) -> None:
    write_config("trial.yaml", "runs/trial", max_steps=4)
    search = {"optimizer.towers.image.lr": "log 1e-5 1e-2"}
    sweep = {"config": "trial.yaml", "sweep_dir": "runs/sweep", "trials": 2, "pruner": "none", "search": search}
    (cluster.shared / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    job = cluster.run(page.line("two workers on one search")).split()[-1]

    def states() -> set[str]:
        return set(re.findall(r"JobState=(\w+)", cluster.run(f"scontrol show job {job}")))

    outputs = [cluster.shared / f"sweep_{job}_{task}.out" for task in (0, 1)]
    cluster.wait_for(lambda: not states() & {"PENDING", "RUNNING", "COMPLETING"}, "the workers to end", *outputs)
    assert states() == {"COMPLETED"}, "".join(path.read_text() for path in outputs)
    table = (cluster.shared / "runs" / "sweep" / "trials.csv").read_text()
    trials = list(csv.DictReader(table.splitlines()))
    assert len(trials) >= 2
    assert {trial["state"] for trial in trials} == {"complete"}


def test_a_worker_that_is_cancelled_stays_away(cluster: Cluster) -> None:
    """Although it saves and ends with the exit code that asks for a requeue."""
    worker = cluster.shared / "worker"
    worker.write_text("#!/bin/bash\ntrap 'echo saved; exit 75' TERM\nwhile :; do sleep 0.1; done\n")
    worker.chmod(0o755)
    line = "PROGRAM=./worker sbatch --parsable --array=0-0 --output=worker.out launch/sweep.sbatch sweep.yaml"
    job = cluster.run(line).strip()
    cluster.wait_for_state(job, "RUNNING", output=cluster.shared / "worker.out")
    time.sleep(1)  # for the worker to be there
    cluster.run(f"scancel {job}")
    said = cluster.shared / "worker.out"
    cluster.wait_for(lambda: "is not requeued here" in said.read_text(), "its end", said)
    assert "saved\n" in said.read_text()
    cluster.wait_for_state(job, "CANCELLED", output=said)
    assert cluster.about(job)["Restarts"] == "0"


def test_every_command_of_the_page_was_run(page: Page) -> None:
    assert page.left == []
