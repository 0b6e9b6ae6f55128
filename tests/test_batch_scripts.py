"""Each turn of the batch scripts in launch, with stand-ins for programs of Slurm; tests/slurm has the real ones."""

import os
import re
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from accel_train.tools.slurm.script import Job, fill_in

ROOT = Path(__file__).parents[1]
JOB = 4711
STAND_INS = {
    "scontrol": 'if [ "$1" = show ]; then printf "%s\\n" $HOSTS; else echo "$*" >>requeued; fi',
    "squeue": 'echo "$STATE"',
    # As on one node: what the task is given runs at once.
    "srun": 'echo "$*" >srun; shift; export SLURM_NODEID=0; "$@" & echo $! >task; wait $!',
    # In the place of Python: leaves what it was given, then does what the test says.
    "interpreter": 'echo "$*" >arguments; env >environment; trap >traps; echo $$ >launcher; eval "$DOES"',
}


@dataclass(frozen=True)
class Node:
    """A folder in which a batch script runs, and what it left there."""

    folder: Path

    @property
    def run_dir(self) -> Path:
        return self.folder / "run"

    def script(self, *, ranks: int = 2) -> str:
        """As filled in for this folder."""
        settings: dict[str, str | list[str]] = {
            "config": "my config.yaml",
            "run_dir": "run",
            "changes": ["data.path=a b"],
            "ranks_per_node": str(ranks),
            "python": str(self.folder / "bin" / "interpreter"),
        }
        return fill_in(Job({}, settings))

    def start(self, does: str, script: str | None = None, **variables: str) -> subprocess.Popen[str]:
        """Starts the script; the launcher does what the shell text `does` says."""
        (self.folder / "train.sbatch").write_text(script or self.script())
        environment = {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "SLURM_JOB_ID": str(JOB),
            "SLURM_JOB_NODELIST": "localhost",
            "SLURM_JOB_NUM_NODES": "1",
            "SLURM_NNODES": "1",
            "SLURM_CPUS_PER_TASK": "6",
            "HOSTS": "localhost",
            "STATE": "RUNNING",
            "DOES": does,
            **variables,
        }
        return subprocess.Popen(
            ["bash", "train.sbatch"],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, does: str, script: str | None = None, **variables: str) -> tuple[int, str]:
        """Exit code and output of the script."""
        running = self.start(does, script, **variables)
        output, _ = running.communicate(timeout=30)
        return running.returncode, output

    def read(self, name: str) -> str:
        return (self.folder / name).read_text()

    def variable(self, name: str) -> str:
        found = re.search(rf"^{name}=(.*)$", self.read("environment"), re.MULTILINE)
        assert found is not None, f"{name} is not set"
        return found[1]

    @property
    def was_requeued(self) -> bool:
        return (self.folder / "requeued").exists()


@pytest.fixture
def node(tmp_path: Path) -> Node:
    (tmp_path / "bin").mkdir()
    for name, text in STAND_INS.items():
        program = tmp_path / "bin" / name
        program.write_text(f"#!/usr/bin/env bash\n{text}\n")
        program.chmod(0o755)
    return Node(tmp_path)


def outcome(line: str, checkpoint: str = "") -> str:
    """Shell text: the run leaves this outcome, and a newer checkpoint."""
    save = f"mkdir -p run/checkpoints; ln -sfn {checkpoint} run/checkpoints/latest;" if checkpoint else ""
    return f'{save} echo "{line}" >"$ACCEL_TRAIN_OUTCOME"; exit 1'


def test_a_run_that_is_done_ends_the_job(node: Node) -> None:
    code, output = node.run(outcome("done"))
    assert (code, node.was_requeued) == (0, False), output


def test_what_would_be_refused_again_is_not_tried_again(node: Node) -> None:
    code, output = node.run(outcome("refused seed: found 'a'"))
    assert (code, node.was_requeued) == (2, False)
    assert "the run: refused seed: found 'a'" in output


@pytest.mark.parametrize(
    "does",
    [
        outcome("stopped stopped by SIGTERM at step 3", "step_00000003"),
        outcome("failed rank 1 could not write its part: No space left"),
        "exit 1",
        "kill -KILL $$",
    ],
    ids=["stopped", "failed", "crashed", "killed"],
)
def test_what_may_go_on_is_requeued(node: Node, does: str) -> None:
    code, output = node.run(does)
    assert (code, node.read("requeued")) == (0, f"requeue {JOB}\n"), output


@pytest.mark.parametrize("state", ["COMPLETING", "CANCELLED", "PENDING"])
def test_a_job_that_was_cancelled_or_is_being_requeued_is_left_alone(node: Node, state: str) -> None:
    code, _ = node.run(outcome("stopped stopped by SIGTERM at step 3"), STATE=state)
    assert (code, node.was_requeued) == (1, False)


def test_a_users_file_ends_the_job(node: Node) -> None:
    code, _ = node.run(outcome("stopped stopped by the file STOP at step 3"))
    assert (code, node.was_requeued) == (75, False)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_to_the_script_becomes_the_file_and_a_requeue(node: Node, number: signal.Signals) -> None:
    wait = "for _ in $(seq 200); do [ -e run/STOP ] && break; sleep 0.05; done; "
    running = node.start(wait + outcome("stopped stopped by the file STOP at step 3"))
    limit = time.monotonic() + 20
    while not (node.folder / "launcher").exists() and time.monotonic() < limit:
        time.sleep(0.02)
    running.send_signal(number)
    output, _ = running.communicate(timeout=30)
    assert running.returncode == 0, output
    assert (node.run_dir / "STOP").exists() and node.was_requeued


def test_a_job_gives_up_after_three_starts_without_a_checkpoint(node: Node) -> None:
    """Also where the run is stopped in order each time, but too early to get on."""
    save = outcome("stopped stopped by SIGTERM at step 3", "step_00000003")
    codes = [node.run(does)[0] for does in ("exit 1", save, "exit 1", save, "exit 1")]
    assert codes == [0, 0, 0, 0, 1]
    assert node.read("requeued") == f"requeue {JOB}\n" * 4


def test_starts_of_another_job_don_t_count(node: Node) -> None:
    assert [node.run("exit 1")[0] for _ in range(3)] == [0, 0, 1]
    assert node.run("exit 1", SLURM_JOB_ID="9")[0] == 0


def test_starts_that_slurm_itself_ended_count(node: Node) -> None:
    """A node that dies in each start takes the script with it before it can count."""
    for _ in range(2):
        running = node.start("sleep 30")
        limit = time.monotonic() + 20
        while not (node.folder / "launcher").exists() and time.monotonic() < limit:
            time.sleep(0.02)
        os.killpg(running.pid, signal.SIGKILL)
        running.communicate(timeout=30)
        (node.folder / "launcher").unlink()
    assert node.run("exit 1")[0] == 1


def test_leftovers_of_an_earlier_start_mean_nothing(node: Node) -> None:
    node.run_dir.mkdir()
    (node.run_dir / "STOP").touch()
    (node.run_dir / "outcome").write_text("done \n")
    code, _ = node.run("[ -e run/STOP ] && exit 0; exit 1")
    assert (code, node.was_requeued) == (0, True)


def test_the_ranks_are_launched_as_the_nodes_are(node: Node) -> None:
    hosts = {"HOSTS": "localhost gpu-4n02", "SLURM_JOB_NUM_NODES": "2", "SLURM_NNODES": "2"}
    node.run(outcome("done"), node.script(ranks=4), **hosts)
    port = str(20000 + JOB)
    assert node.read("arguments").split(" -m accel_train ") == [
        "-m accelerate.commands.launch --config_file launch/ddp.yaml --num_machines 2 --num_processes 8 --machine_rank 0 "
        f"--main_process_ip localhost --main_process_port {port}",
        "train my config.yaml data.path=a b run_dir=run\n",
    ]
    assert node.read("srun").startswith("--kill-on-bad-exit=1 bash -c")
    assert (node.variable("MASTER_ADDR"), node.variable("MASTER_PORT")) == ("localhost", port)
    assert node.variable("SRUN_CPUS_PER_TASK") == "6"


def test_one_rank_needs_no_launcher(node: Node) -> None:
    """Accelerate's launcher of a single process dies of SIGTERM and leaves the process."""
    node.run(outcome("done"), node.script(ranks=1))
    assert node.read("arguments") == "-m accel_train train my config.yaml data.path=a b run_dir=run\n"


def test_a_port_that_answers_is_passed_over(node: Node) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 20000 + JOB))
        taken.listen()
        node.run(outcome("done"), HOSTS="127.0.0.1")
    assert node.variable("MASTER_PORT") == str(20000 + (JOB + 1009) % 10000)


def passes_signals_on(node: Node, script: str) -> bool:
    """Whether the task itself is the launcher, heeds no USR1 before it is ready, and then passes it on."""
    # Some versions of bash start the last command as with exec; the others don't.
    starts = re.findall(r'(\S+) "\$python" -m', script)
    node.run(outcome("done"), script)
    passed_on = re.search(r"^PET_SIGNALS_TO_HANDLE=(.*)$", node.read("environment"), re.MULTILINE)
    return (
        starts == ["exec", "exec"]
        and node.read("task") == node.read("launcher")
        and "trap -- '' SIGUSR1" in node.read("traps")
        and passed_on is not None
        and {"SIGTERM", "SIGINT", "SIGUSR1"} <= set(passed_on[1].split(","))
        and int(node.variable("TORCH_ELASTIC_SHUTDOWN_TIMEOUT")) >= 60
    )


@pytest.mark.parametrize("ranks", [1, 2])
def test_signals_reach_the_ranks(node: Node, ranks: int) -> None:
    assert passes_signals_on(node, node.script(ranks=ranks))


@pytest.mark.parametrize(
    ("line", "instead"),
    [
        ("export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1\n", ""),
        ('exec "$python" -m accelerate', '"$python" -m accelerate'),
        ('trap "" USR1\n', ""),
        ("export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=$leave_seconds\n", "export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=3\n"),
    ],
    ids=["PET_SIGNALS_TO_HANDLE", "exec", "trap", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"],
)
def test_that_test_sees_what_is_missing(node: Node, line: str, instead: str) -> None:
    script = node.script(ranks=2)
    assert script.count(line) == 1
    assert not passes_signals_on(node, script.replace(line, instead))


@pytest.fixture
def two_phase(tmp_path: Path) -> Path:
    """A folder whose `accel-train` gives numbers to jobs, keeps what it was asked, and refuses bad.yaml."""
    program = tmp_path / "accel-train"
    program.write_text(
        '#!/usr/bin/env bash\necho "$*" >>asked\n[[ "$*" == *bad.yaml* ]] && exit 2\n'
        '[[ "$*" == *--submit* ]] && grep -c submit asked || echo script\n'
    )
    program.chmod(0o755)
    return tmp_path


def run_two_phase(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": f"{folder}:{os.environ['PATH']}"}
    command = ["bash", str(ROOT / "launch" / "two_phase.sh"), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_second_phase_waits_for_the_first(two_phase: Path) -> None:
    done = run_two_phase(two_phase, "a.yaml", "b.yaml", "--nodes", "2", "--gpus", "8")
    assert (done.returncode, done.stdout) == (0, "1\n2\n")
    assert (two_phase / "asked").read_text().splitlines() == [
        "slurm b.yaml --nodes 2 --gpus 8",
        "slurm a.yaml --nodes 2 --gpus 8 --submit",
        "slurm b.yaml --nodes 2 --gpus 8 --after 1 --submit",
    ]


def test_nothing_is_submitted_if_the_second_phase_is_wrong(two_phase: Path) -> None:
    done = run_two_phase(two_phase, "a.yaml", "bad.yaml", "--gpus", "8")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--submit" not in (two_phase / "asked").read_text()
