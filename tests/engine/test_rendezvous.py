"""The roll call before the ranks connect. Ranks are threads here: what they say to each other goes over real sockets."""

import os
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from accel_train.engine import rendezvous
from accel_train.engine.launch import Launch
from accel_train.engine.rendezvous import call_roll, find_address
from accel_train.errors import UserError

VARIABLES = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GLOO_SOCKET_IFNAME")


def launch(rank: int, world_size: int) -> Launch:
    return Launch(engine="ddp", offload_optimizer=False, rank=rank, local_rank=rank, world_size=world_size)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """environment(NAME=value, ...): these and nothing else of a launcher or of Slurm."""
    for name in list(os.environ):
        if name in VARIABLES or name.startswith(("SLURM_", "TORCHELASTIC_")):
            monkeypatch.delenv(name)
    monkeypatch.setattr(os, "environ", os.environ.copy())

    def put(**values: str) -> None:
        os.environ.update(values)

    return put


@pytest.fixture
def meet(environment: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """meet(3, [0, 1]): the words with which each of these ranks of 3 was turned away; empty for one that was not."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        environment(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(probe.getsockname()[1]))
    monkeypatch.setattr(rendezvous, "ROLL_CALL_SECONDS", 0.5)

    open_stores = []  # rank 0's is the meeting point: it must last until all have heard

    def one(place: Launch) -> str:
        try:
            open_stores.append(call_roll(place))
        except UserError as refusal:
            return str(refusal)
        return ""

    def all_of(world_size: int, ranks: list[int], **sizes: int) -> list[str]:
        places = [launch(rank, sizes.get(f"rank{rank}", world_size)) for rank in ranks]
        with ThreadPoolExecutor(len(places)) as pool:
            return list(pool.map(one, places))

    return all_of


def test_all_come(meet: Callable[..., list[str]]) -> None:
    assert meet(3, [0, 1, 2]) == ["", "", ""]


def test_one_process_meets_nobody(environment: Callable[..., None]) -> None:
    find_address(launch(0, 1), must_use_all_hosts=True)
    assert call_roll(launch(0, 1)) is None


def test_the_missing_are_named_to_all(meet: Callable[..., list[str]]) -> None:
    said = meet(7, [0, 2, 3])
    assert len(set(said)) == 1
    assert "4 of 7 ranks did not come within 0.5 s: ranks 1, 4-6." in said[0]
    assert f"There came ranks 0, 2-3 on {socket.gethostname()}." in said[0]


def test_without_rank_0_there_is_nobody(meet: Callable[..., list[str]]) -> None:
    said = meet(2, [1])
    assert "Rank 1 on" in said[0] and "found nobody at 127.0.0.1:" in said[0]


def test_a_rank_that_came_twice_is_named_to_all(meet: Callable[..., list[str]]) -> None:
    said = meet(3, [0, 1, 1])
    assert all("RANK 1 came twice" in words for words in said)


def test_ranks_of_another_launch_are_named(meet: Callable[..., list[str]]) -> None:
    said = meet(2, [0, 1], rank1=4)
    assert all("Rank 0 was told WORLD_SIZE=2, but rank 1 4." in words for words in said)


def test_a_port_that_is_taken(meet: Callable[..., list[str]]) -> None:
    with socket.socket() as other:
        other.bind(("0.0.0.0", int(os.environ["MASTER_PORT"])))
        other.listen()
        said = meet(2, [0])
    assert f"MASTER_PORT {os.environ['MASTER_PORT']}" in said[0] and "another job may use it" in said[0]


@pytest.mark.parametrize(
    ("variables", "rank", "words"),
    [
        ({}, 0, "MASTER_ADDR is not set"),
        ({"MASTER_ADDR": "a"}, 0, "MASTER_PORT is ''"),
        ({"MASTER_ADDR": "a", "MASTER_PORT": "http"}, 0, "MASTER_PORT is 'http'"),
        ({"MASTER_ADDR": "a", "MASTER_PORT": "70000"}, 0, "MASTER_PORT is '70000'"),
        ({"MASTER_ADDR": "a", "MASTER_PORT": "29500"}, 2, "ranks count from 0"),
    ],
)
def test_places_that_can_not_be(
    environment: Callable[..., None], variables: dict[str, str], rank: int, words: str
) -> None:
    environment(**variables)
    with pytest.raises(UserError, match=words):
        find_address(launch(rank, 2), must_use_all_hosts=True)


def test_slurm_gives_the_address_that_is_missing(environment: Callable[..., None]) -> None:
    environment(SLURM_JOB_ID="123456", SLURM_JOB_NODELIST="127.0.7.[1-2]", SLURM_STEP_NUM_TASKS="2")
    find_address(launch(1, 2), must_use_all_hosts=True)
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("127.0.7.1", "23456")


def test_an_evaluation_may_leave_hosts_out(environment: Callable[..., None]) -> None:
    environment(SLURM_JOB_ID="1", SLURM_JOB_NODELIST="a,b")
    find_address(launch(0, 1), must_use_all_hosts=False)
    with pytest.raises(UserError, match="Slurm started 2 tasks on 2 hosts"):
        find_address(launch(0, 1), must_use_all_hosts=True)


def test_gloo_takes_the_interface_towards_rank_0(
    environment: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    environment(MASTER_ADDR="198.51.100.1", MASTER_PORT="29500")
    monkeypatch.setattr(rendezvous, "interface_towards", lambda address: "ib0")
    find_address(launch(0, 2), must_use_all_hosts=True)
    assert os.environ["GLOO_SOCKET_IFNAME"] == "ib0"
    environment(GLOO_SOCKET_IFNAME="eth1")
    find_address(launch(0, 2), must_use_all_hosts=True)
    assert os.environ["GLOO_SOCKET_IFNAME"] == "eth1"
