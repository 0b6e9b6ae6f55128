"""How the ranks of a job find each other: the address is checked, then a roll call names who did not come.

torch would wait for all of them in its first collective, for as long as a step may take, and then speak of a store's keys.
"""

import os
import socket
import time

from torch.distributed import DistNetworkError, TCPStore  # type: ignore[attr-defined]  # torch's stubs hide it

from accel_train.engine.hosts import FIRST_PORT, NUM_PORTS, check_address, check_size, interface_towards, slurm_step
from accel_train.engine.launch import Launch
from accel_train.errors import NotNow, UserError
from accel_train.rank_names import name_ranks

ROLL_CALL_SECONDS = 300.0
"""From the first rank to the last: time to read Python and torch from a slow disk, not to train anything."""
LAST_WORDS_SECONDS = 10.0
"""How long rank 0 stays after a roll call that failed, so that the others can read why."""


def find_address(launch: Launch, *, must_use_all_hosts: bool) -> None:
    """Checks where the ranks are to meet and what Slurm says of them. Raises UserError.

    Under `srun` without a launcher MASTER_ADDR and MASTER_PORT may be missing: they are the first host and a port made from
    the job's number. Gloo gets the network interface that leads there, unless GLOO_SOCKET_IFNAME is set.
    """
    step = slurm_step(os.environ)
    if step is not None and must_use_all_hosts:
        check_size(step, launch.world_size, os.environ)
    if launch.world_size == 1:
        return
    if step is not None:
        os.environ.setdefault("MASTER_ADDR", step.hosts[0])
        os.environ.setdefault("MASTER_PORT", str(step.port))
    address, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    if not address:
        raise UserError(
            f"MASTER_ADDR is not set, and WORLD_SIZE is {launch.world_size}: rank 0's host must be known to all ranks. Use "
            "torchrun or accelerate launch, or set MASTER_ADDR and MASTER_PORT for every rank."
        )
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(f"MASTER_PORT is {port!r}; it must be a free port of {address} between 1 and 65535.")
    if launch.rank >= launch.world_size or launch.rank < 0:
        raise UserError(
            f"RANK is {launch.rank} and WORLD_SIZE {launch.world_size}; ranks count from 0 to WORLD_SIZE - 1."
        )
    if step is not None:
        check_address(step, address, rank=launch.rank, agents_choose="TORCHELASTIC_RUN_ID" in os.environ)
    if "GLOO_SOCKET_IFNAME" not in os.environ and (interface := interface_towards(address)):
        os.environ["GLOO_SOCKET_IFNAME"] = interface


def call_roll(launch: Launch) -> TCPStore | None:
    """Waits until all ranks are there, and returns what keeps their meeting point open until torch has made its own.

    Raises UserError on every rank that came, with the ranks that did not, after ROLL_CALL_SECONDS.
    """
    if launch.world_size == 1:
        return None
    store = _connect(launch)
    try:
        verdict = _answer(store, launch) or (_judge(store, launch.world_size) if launch.rank == 0 else _hear(store))
    except DistNetworkError as error:
        verdict = (
            f"Rank {launch.rank} on {socket.gethostname()} lost rank 0 before all ranks had come: look at the output of "
            f"rank 0. ({str(error).splitlines()[0]})"
        )
    if verdict:
        raise NotNow(verdict)
    return store


def _answer(store: TCPStore, launch: Launch) -> str:
    """Says that this rank is there. Returns what is wrong if it was there already."""
    # torchrun's agents number the ranks themselves, and may do so anew.
    if "TORCHELASTIC_RUN_ID" not in os.environ and store.add(f"roll_call/times/{launch.rank}", 1) > 1:
        twice = (
            f"RANK {launch.rank} came twice, the second time from {socket.gethostname()}. Every process needs a RANK of its "
            "own; a variable such as $SLURM_PROCID must reach the task unexpanded: srun bash -c '...' with single quotes."
        )
        store.set("roll_call/verdict", twice)
        return twice
    store.set(f"roll_call/host/{launch.rank}", socket.gethostname())
    store.set(f"roll_call/size/{launch.rank}", str(launch.world_size))
    return ""


def _connect(launch: Launch) -> TCPStore:
    """A client of the store at MASTER_ADDR, which rank 0 opens unless torchrun's agent has done so.

    torch's own wait for a port is deaf to signals and prints a stack of C++ functions when it fails, so ours comes first.
    """
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    opens = launch.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    if opens:
        _check_free(port)
    else:
        _wait_until_open(launch, address, port)
    # torch opens a store of its own on the same port later, in the same process: that makes two tenants of one server.
    return TCPStore(address, port, is_master=opens, wait_for_workers=False, multi_tenant=True)


def _check_free(port: int) -> None:
    with socket.socket(socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise NotNow(
                f"MASTER_PORT {port} of {socket.gethostname()} can't be had ({error.strerror}): another job may use it. "
                f"Choose another one; under Slurm {FIRST_PORT} + SLURM_JOB_ID % {NUM_PORTS} differs between jobs."
            ) from error


def _wait_until_open(launch: Launch, address: str, port: int) -> None:
    since = time.monotonic()
    while True:
        try:
            socket.create_connection((address, port), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() - since > ROLL_CALL_SECONDS:
                raise NotNow(
                    f"Rank {launch.rank} on {socket.gethostname()} found nobody at {address}:{port} within "
                    f"{ROLL_CALL_SECONDS:g} s ({error}). Rank 0 waits there: look at its output first. If it does, look at "
                    "MASTER_ADDR and MASTER_PORT, and at what lies between the hosts: a firewall, several networks."
                ) from error
            _pause(since)


def _judge(store: TCPStore, world_size: int) -> str:
    """Rank 0's part: waits for all, and tells all the outcome. Empty if everyone came."""
    since = time.monotonic()
    keys = [f"roll_call/size/{rank}" for rank in range(world_size)]
    while not (complete := store.check(keys)) and time.monotonic() - since < ROLL_CALL_SECONDS:
        if store.check(["roll_call/verdict"]):  # by a rank that came twice
            break
        _pause(since)
    present = [rank for rank in range(world_size) if complete or store.check([keys[rank]])]
    if store.check(["roll_call/verdict"]):
        verdict = store.get("roll_call/verdict").decode()
    else:
        verdict = _what_is_wrong(store, present, world_size)
        store.set("roll_call/verdict", verdict)
    limit = time.monotonic() + LAST_WORDS_SECONDS
    while verdict and store.add("roll_call/readers", 0) < len(present) - 1 and time.monotonic() < limit:
        _pause(since)
    return verdict


def _what_is_wrong(store: TCPStore, present: list[int], world_size: int) -> str:
    if missing := sorted(set(range(world_size)) - set(present)):
        return (
            f"{len(missing)} of {world_size} ranks did not come within {ROLL_CALL_SECONDS:g} s: {name_ranks(missing)}. "
            f"There came {_by_host(store, present)}. Look at the output of the missing ones: they may have failed "
            "before they got here, were not started, or can't reach the first host."
        )
    sizes = {rank: int(store.get(f"roll_call/size/{rank}")) for rank in present}
    wrong = ", ".join(f"rank {rank} {size}" for rank, size in sizes.items() if size != world_size)
    if wrong:
        return (
            f"Rank 0 was told WORLD_SIZE={world_size}, but {wrong}. The launchers of all hosts need the same number of "
            "hosts and processes."
        )
    return ""


def _hear(store: TCPStore) -> str:
    since = time.monotonic()
    longest = 2 * ROLL_CALL_SECONDS + LAST_WORDS_SECONDS  # rank 0 may have come that much later
    while not store.check(["roll_call/verdict"]):
        if time.monotonic() - since > longest:
            return "Rank 0 took no roll call, although its port is open. Look at the output of rank 0."
        _pause(since)
    verdict = store.get("roll_call/verdict").decode()
    store.add("roll_call/readers", 1)
    return verdict


def _pause(since: float) -> None:
    """Between two looks: short at first, so that a start costs nothing, long for the thousands who wait for a late host."""
    time.sleep(min(1.0, 0.01 + (time.monotonic() - since) / 10))


def _by_host(store: TCPStore, ranks: list[int]) -> str:
    hosts: dict[str, list[int]] = {}
    for rank in ranks:
        hosts.setdefault(store.get(f"roll_call/host/{rank}").decode(), []).append(rank)
    return "; ".join(f"{name_ranks(on_host)} on {host}" for host, on_host in hosts.items())
