"""Hosts of a job as Slurm lists them, and whether what a launcher says of them can be true."""

import fcntl
import re
import socket
import struct
from collections.abc import Mapping
from ipaddress import ip_address
from typing import NamedTuple

from accel_train.errors import UserError

Environment = Mapping[str, str]
FIRST_PORT, NUM_PORTS = 20_000, 10_000
"""Ports derived from a job's number lie below the range from which systems lend ports (32768 and up)."""
GET_ADDRESS = 0x8915
"""SIOCGIFADDR: asks Linux for the IPv4 address of a network interface."""


class SlurmStep(NamedTuple):
    """What Slurm started together: an `srun` step, or else the whole job as its batch script sees it."""

    hosts: list[str]
    tasks: int
    job: int

    @property
    def port(self) -> int:
        """The same on every rank, and another one than that of a job beside it. A requeued job keeps its number."""
        return FIRST_PORT + self.job % NUM_PORTS


def slurm_step(environment: Environment) -> SlurmStep | None:
    """None outside of Slurm. In a batch script, which runs on the first host alone, a task stands for each host."""
    listed = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST")
    if not listed or "SLURM_JOB_ID" not in environment:
        return None
    hosts = expand_hosts(listed)
    tasks = int(environment.get("SLURM_STEP_NUM_TASKS", len(hosts)))
    return SlurmStep(hosts, tasks, int(environment["SLURM_JOB_ID"]))


def expand_hosts(listed: str) -> list[str]:
    """Host names of Slurm's short form, as `scontrol show hostnames` gives them: `a[1-2,04]b,c` is a1b, a2b, a04b, c.

    Containers have Slurm's variables but not its commands, so this is done here.
    """
    names = []
    for part in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", listed):
        found = re.fullmatch(r"([^\[]*)\[([^\]]+)\](.*)", part)
        if found is None:
            names.append(part)
            continue
        before, ranges, after = found.groups()
        for numbers in ranges.split(","):
            first, _, last = numbers.partition("-")
            for number in range(int(first), int(last or first) + 1):
                names += [f"{before}{number:0{len(first)}}{rest}" for rest in expand_hosts(after) or [""]]
    return names


def check_size(step: SlurmStep, world_size: int, environment: Environment) -> None:
    """Raises UserError if some of Slurm's tasks or hosts have no part in this launch: each would train by itself."""
    num_hosts = len(step.hosts)
    found = f"Slurm started {step.tasks} tasks on {num_hosts} hosts ({', '.join(step.hosts[:4])}), but "
    remedy = (
        "Several trainings would run side by side, each believing to be the only one. Either give every host the same "
        "job (torchrun --nnodes, accelerate launch --num_machines and --machine_rank), or every task its place: srun bash "
        "-c 'export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS; exec accel-train train ...'. "
        "One process alone: srun --nodes=1 --ntasks=1 accel-train train ..."
    )
    if world_size < step.tasks and not _may_shrink(environment):
        raise UserError(f"{found}WORLD_SIZE is {environment.get('WORLD_SIZE', 'not set')}. {remedy}", code="AT205")
    if num_hosts > 1 and int(environment.get("LOCAL_WORLD_SIZE", 0)) >= world_size and not _may_shrink(environment):
        raise UserError(f"{found}all {world_size} ranks of this launch are on one of them. {remedy}", code="AT205")


def _may_shrink(environment: Environment) -> bool:
    """Whether torchrun was told to go on with fewer hosts than there are, or already did so after a failure."""
    return ":" in environment.get("PET_NNODES", "") or environment.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


def check_address(step: SlurmStep, address: str, *, rank: int, agents_choose: bool) -> None:
    """Raises UserError if `address` can't be where the ranks of several hosts meet.

    `agents_choose`: torchrun's agents agree on the host of rank 0, so it may be any. Another name of a host, for example
    on a faster network, is not in Slurm's list: of such an address only rank 0 can say whether it is its own.
    """
    if len(step.hosts) == 1:
        return
    rule = f"with several hosts it must be the first of Slurm's list, {step.hosts[0]}"
    remedy = "Set MASTER_ADDR (or --main_process_ip, --rdzv-endpoint) to that name, or leave it unset with srun."
    theirs = _addresses(address)
    host = next((name for name in step.hosts if name == address or theirs & _addresses(name)), None)
    if host is None and (address == "localhost" or (theirs and all(ip_address(ip).is_loopback for ip in theirs))):
        raise UserError(f"MASTER_ADDR is {address}, by which every host means itself; {rule}. {remedy}", code="AT205")
    if host is not None and host != step.hosts[0] and not agents_choose:
        raise UserError(
            f"MASTER_ADDR is {address}, which is the host {host}; {rule}, where rank 0 is. {remedy}", code="AT205"
        )
    if host is None and rank == 0 and theirs and not agents_choose and not any(_is_ours(ip) for ip in theirs):
        raise UserError(
            f"MASTER_ADDR is {address}, which is not on {socket.gethostname()}, where rank 0 is; {rule}. {remedy}",
            code="AT205",
        )


def _addresses(name: str) -> set[str]:
    try:
        return {str(found[4][0]).partition("%")[0] for found in socket.getaddrinfo(name, None)}
    except OSError:  # a name that is not known (yet): the roll call waits for it
        return set()


def _is_ours(ip: str) -> bool:
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    with socket.socket(family) as probe:
        try:
            probe.bind((ip, 0))
        except OSError:
            return False
    return True


def interface_towards(address: str) -> str | None:
    """The network interface by which this host reaches another, or on which it has this address itself.

    None for a loopback address, over IPv6, and where it can't be told.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))  # sends nothing: the system chooses the way and with it our address
            ours = probe.getsockname()[0]
        except OSError:
            return None
        if ip_address(ours).is_loopback:
            return None
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe.fileno(), GET_ADDRESS, struct.pack("256s", name.encode()))
            except OSError:  # an interface without an IPv4 address
                continue
            if socket.inet_ntoa(answer[20:24]) == ours:
                return name
    return None
