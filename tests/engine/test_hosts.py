"""What Slurm says of a job, and launches that contradict it."""

import socket

import pytest

from accel_train.engine.hosts import SlurmStep, check_address, check_size, expand_hosts, interface_towards, slurm_step
from accel_train.errors import UserError

TWO_HOSTS = SlurmStep(["127.0.7.1", "127.0.7.2"], 2, 41)


@pytest.mark.parametrize(
    ("listed", "hosts"),
    [
        ("node1", ["node1"]),
        ("node1,node3", ["node1", "node3"]),
        ("node[1-3]", ["node1", "node2", "node3"]),
        ("gpu-[08-10,3]", ["gpu-08", "gpu-09", "gpu-10", "gpu-3"]),
        ("rack[1-2]node[03-04]", ["rack1node03", "rack1node04", "rack2node03", "rack2node04"]),
        ("gpu-[1,3-4]n[01-02]x,login", [f"gpu-{a}n{b}x" for a in (1, 3, 4) for b in ("01", "02")] + ["login"]),
        ("c[098-101].example.org", [f"c{n:03d}.example.org" for n in (98, 99, 100, 101)]),
    ],
)
def test_short_lists_are_written_out(listed: str, hosts: list[str]) -> None:
    assert expand_hosts(listed) == hosts


def test_a_step_counts_before_the_job() -> None:
    job = {"SLURM_JOB_ID": "12345", "SLURM_JOB_NODELIST": "node[1-4]", "SLURM_NTASKS": "32"}
    assert slurm_step({}) is None
    assert slurm_step(job) == SlurmStep(["node1", "node2", "node3", "node4"], 4, 12345)
    step = job | {"SLURM_STEP_NODELIST": "node2", "SLURM_STEP_NUM_TASKS": "1"}
    assert slurm_step(step) == SlurmStep(["node2"], 1, 12345)


def test_ports_of_neighbouring_jobs_differ() -> None:
    ports = [SlurmStep([], 1, job).port for job in range(99_990, 100_010)]
    assert len(set(ports)) == len(ports)
    assert all(20_000 <= port < 30_000 for port in ports)


@pytest.mark.parametrize(
    ("world_size", "variables", "words"),
    [
        (1, {}, "WORLD_SIZE is not set"),
        (1, {"WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}, "WORLD_SIZE is 1"),
        # One launcher on each host that knows nothing of the other: enough ranks for the tasks, on the wrong hosts.
        (
            4,
            {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4", "TORCHELASTIC_RESTART_COUNT": "0"},
            "all 4 ranks of this launch",
        ),
    ],
)
def test_trainings_side_by_side_are_refused(world_size: int, variables: dict[str, str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_size(TWO_HOSTS, world_size, variables)


@pytest.mark.parametrize(
    ("world_size", "variables"),
    [
        (2, {"WORLD_SIZE": "2"}),
        (8, {"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}),
        (4, {"LOCAL_WORLD_SIZE": "4", "PET_NNODES": "1:2"}),
        (1, {"LOCAL_WORLD_SIZE": "1", "TORCHELASTIC_RESTART_COUNT": "2"}),
    ],
)
def test_whole_launches_and_ones_that_may_shrink_pass(world_size: int, variables: dict[str, str]) -> None:
    check_size(TWO_HOSTS, world_size, variables)


def test_one_host_needs_no_other() -> None:
    check_size(SlurmStep(["node1"], 1, 1), 8, {"LOCAL_WORLD_SIZE": "8"})
    check_address(SlurmStep(["node1"], 1, 1), "127.0.0.1", rank=0, agents_choose=False)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("localhost", "by which every host means itself"),
        ("127.0.0.1", "by which every host means itself"),
        ("127.0.7.2", "which is the host 127.0.7.2"),
        ("192.0.2.7", "which is not on"),
    ],
)
def test_addresses_that_are_not_the_first_host(address: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as refused:
        check_address(TWO_HOSTS, address, rank=0, agents_choose=False)
    assert "the first of Slurm's list, 127.0.7.1" in str(refused.value)
    assert "Set MASTER_ADDR" in str(refused.value)


def test_addresses_that_may_be_right() -> None:
    check_address(TWO_HOSTS, "127.0.7.1", rank=0, agents_choose=False)
    check_address(TWO_HOSTS, "127.0.7.2", rank=0, agents_choose=True)
    check_address(TWO_HOSTS, "192.0.2.7", rank=1, agents_choose=False)  # rank 0 knows
    check_address(TWO_HOSTS, "no-such-host.invalid", rank=0, agents_choose=False)  # the roll call will tell


def test_the_interface_is_the_one_that_has_the_address() -> None:
    assert interface_towards("127.0.0.1") is None
    assert interface_towards("no-such-host.invalid") is None
    ours = socket.gethostbyname(socket.gethostname())
    if not ours.startswith("127."):
        assert interface_towards(ours) in [name for _, name in socket.if_nameindex()]
