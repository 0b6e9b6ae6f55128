"""How the ranks of a job find each other: the address is checked, then a roll call names who did not come.

torch would wait for all of them in its first collective, for as long as a step may take, and then speak of a store's keys.
"""

import json
import os
import secrets
import socket
import time
from typing import Any

from torch.distributed import (  # type: ignore[attr-defined]  # torch's stubs hide them
    DistNetworkError,
    PrefixStore,
    Store,
    TCPStore,
)

from accel_train.engine.hosts import FIRST_PORT, NUM_PORTS, check_address, check_size, interface_towards, slurm_step
from accel_train.engine.launch import Launch
from accel_train.errors import NotNow, UserError
from accel_train.rank_names import name_ranks

ROLL_CALL_SECONDS = 300.0
"""From the first rank to the last: time to read Python and torch from a slow disk, not to train anything."""
CALL = "roll_call"
"""Where the store holds the name of the present start."""
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
            "torchrun or accelerate launch, or set MASTER_ADDR and MASTER_PORT for every rank.",
            code="AT204",
        )
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(
            f"MASTER_PORT is {port!r}; it must be a free port of {address} between 1 and 65535.", code="AT204"
        )
    if launch.rank >= launch.world_size or launch.rank < 0:
        raise UserError(
            f"RANK is {launch.rank} and WORLD_SIZE {launch.world_size}; ranks count from 0 to WORLD_SIZE - 1.",
            code="AT204",
        )
    if step is not None:
        check_address(step, address, rank=launch.rank, agents_choose="TORCHELASTIC_RUN_ID" in os.environ)
    if "GLOO_SOCKET_IFNAME" not in os.environ and (interface := interface_towards(address)):
        os.environ["GLOO_SOCKET_IFNAME"] = interface


def call_roll(launch: Launch) -> Store | None:
    """Waits until all ranks are there, and returns the store at which they met, for torch to use. None: one process alone.

    Raises UserError on every rank that came, with the ranks that did not, after ROLL_CALL_SECONDS. Under torchrun the store
    belongs to an agent and keeps what earlier starts of the ranks wrote, addresses of dead processes too. So rank 0 makes up
    a name for this start, by which everything in the store goes, and hears everyone by it.
    """
    if launch.world_size == 1:
        return None
    store = _connect(launch)
    try:
        name, verdict = _judge(store, launch) if launch.rank == 0 else _hear(store, launch)
    except DistNetworkError as error:
        raise UserError(
            f"Rank {launch.rank} on {socket.gethostname()} lost rank 0 before all ranks had come: look at the output of "
            f"rank 0. ({str(error).splitlines()[0]})",
            code="AT204",
        ) from error
    if verdict:
        raise UserError(verdict, code="AT204")
    return PrefixStore(name, store)


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
    return TCPStore(address, port, is_master=opens, wait_for_workers=False)


def _check_free(port: int) -> None:
    with socket.socket(socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise NotNow(
                f"MASTER_PORT {port} of {socket.gethostname()} can't be had ({error.strerror}): another job may use it. "
                f"Choose another one; under Slurm {FIRST_PORT} + SLURM_JOB_ID % {NUM_PORTS} differs between jobs.",
                code="AT204",
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
                    "MASTER_ADDR and MASTER_PORT, and at what lies between the hosts: a firewall, several networks.",
                    code="AT204",
                ) from error
            _pause(since)


def _judge(store: TCPStore, launch: Launch) -> tuple[str, str]:
    """Rank 0's part: calls, waits for all, and tells them the outcome. Returns this start's name, and what is wrong."""
    since = time.monotonic()
    name = secrets.token_hex(8)
    keys = [f"{name}/{rank}" for rank in range(launch.world_size)]
    _answer(store, launch, name, "")
    store.set(CALL, name)
    while not (complete := store.check(keys)) and time.monotonic() - since < ROLL_CALL_SECONDS:
        if store.check([f"{name}/twice"]):
            break
        _pause(since)
    present = {rank: _read(store, key) for rank, key in enumerate(keys) if complete or store.check([key])}
    wrong = _what_is_wrong(store, name, present, launch.world_size)
    store.set(f"{name}/verdict", json.dumps({"wrong": wrong, "heard": [one["token"] for one in present.values()]}))
    limit = time.monotonic() + LAST_WORDS_SECONDS
    readers = len(present) - 1 + store.check([f"{name}/twice"])
    while wrong and store.add(f"{name}/readers", 0) < readers and time.monotonic() < limit:
        _pause(since)
    return name, wrong


def _answer(store: TCPStore, launch: Launch, name: str, token: str) -> None:
    here = {"host": socket.gethostname(), "size": launch.world_size, "token": token}
    if store.add(f"{name}/times/{launch.rank}", 1) > 1:
        store.set(f"{name}/twice", json.dumps({"rank": launch.rank, "host": here["host"]}))
    else:
        store.set(f"{name}/{launch.rank}", json.dumps(here))


def _hear(store: TCPStore, launch: Launch) -> tuple[str, str]:
    """Every other rank's part: answers each call, the one that a start before this one left too, until it was heard."""
    since = time.monotonic()
    longest = 2 * ROLL_CALL_SECONDS + LAST_WORDS_SECONDS  # rank 0 may have come that much later
    token, answered = secrets.token_hex(8), ""
    while time.monotonic() - since < longest:
        name = store.get(CALL).decode() if store.check([CALL]) else answered
        if name != answered:
            _answer(store, launch, name, token)
            answered = name
        if name and store.check([f"{name}/verdict"]):
            verdict = _read(store, f"{name}/verdict")
            twice = store.check([f"{name}/twice"]) and "came twice" in verdict["wrong"]
            if token in verdict["heard"] or twice:
                store.add(f"{name}/readers", 1)
                return name, verdict["wrong"]
        _pause(since)
    return "", "Rank 0 took no roll call, although its port is open. Look at the output of rank 0."


def _read(store: TCPStore, key: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(store.get(key))
    return found


def _what_is_wrong(store: TCPStore, name: str, present: dict[int, dict[str, Any]], world_size: int) -> str:
    """Empty if everyone came, once, from the same launch."""
    if store.check([f"{name}/twice"]):
        second = _read(store, f"{name}/twice")
        return (
            f"RANK {second['rank']} came twice, the second time from {second['host']}. Every process needs a RANK of its "
            "own; a variable such as $SLURM_PROCID must reach the task unexpanded: srun bash -c '...' with single quotes."
        )
    if missing := sorted(set(range(world_size)) - set(present)):
        hosts: dict[str, list[int]] = {}
        for rank, one in present.items():
            hosts.setdefault(one["host"], []).append(rank)
        came = "; ".join(f"{name_ranks(ranks)} on {host}" for host, ranks in hosts.items())
        return (
            f"{len(missing)} of {world_size} ranks did not come within {ROLL_CALL_SECONDS:g} s: {name_ranks(missing)}. "
            f"There came {came}. Look at the output of the missing ones: they may have failed before they got here, were "
            "not started, or can't reach the first host."
        )
    sizes = ", ".join(f"rank {rank} {one['size']}" for rank, one in present.items() if one["size"] != world_size)
    if sizes:
        return (
            f"Rank 0 was told WORLD_SIZE={world_size}, but {sizes}. The launchers of all hosts need the same number of "
            "hosts and processes."
        )
    return ""


def _pause(since: float) -> None:
    """Between two looks: short at first, so that a start costs nothing, long for the thousands who wait for a late host."""
    time.sleep(min(1.0, 0.01 + (time.monotonic() - since) / 10))
