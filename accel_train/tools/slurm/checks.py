"""What can be known of a job before it waits in a queue: the partition, its time limit, and where the run's folder lies."""

import math
import os
import re
import shutil
import subprocess
from pathlib import Path

from accel_train.errors import UserError

DURATION = re.compile(r"(?:(?P<days>\d+)-)?(?P<first>\d+)(?::(?P<second>\d+))?(?::(?P<third>\d+))?", re.ASCII)
MOUNTS = Path("/proc/mounts")
OF_ONE_NODE = ("/tmp", "/var/tmp", "/dev/shm", "/run")
IN_MEMORY = ("tmpfs", "ramfs", "devtmpfs")
ON_A_DISK = ("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "overlay", "f2fs")


def seconds(duration: str) -> float:
    """A time as Slurm writes it: minutes, m:s, h:m:s, d-h, d-h:m, d-h:m:s, or no limit. Raises UserError."""
    if duration.lower() in ("infinite", "unlimited"):
        return math.inf
    found = DURATION.fullmatch(duration)
    if found is None:
        raise UserError(
            f"--time: found {duration!r}; Slurm's times are minutes, minutes:seconds, hours:minutes:seconds, days-hours or "
            "days-hours:minutes:seconds, for example 12:00:00."
        )
    given = [int(part) for part in (found["first"], found["second"], found["third"]) if part is not None]
    if found["days"] is not None:
        hours, minutes, rest = (*given, 0, 0)[:3]
    elif len(given) == 3:
        hours, minutes, rest = given
    else:
        hours, (minutes, rest) = 0, (*given, 0)[:2]
    return 86400.0 * int(found["days"] or 0) + 3600 * hours + 60 * minutes + rest


def check_partition(wanted: str | None, time: str, nodes: int) -> None:
    """Compares with what `sinfo` says of the partitions, the default one if none is wanted. Raises UserError."""
    said = _ask("sinfo", "-h", "-o", "%P|%l|%D")
    partitions = {}
    default = None
    for line in said.splitlines():
        name, limit, size = line.split("|")
        default = name.rstrip("*") if name.endswith("*") else default
        partitions[name.rstrip("*")] = (limit, int(size))
    names = wanted.split(",") if wanted else [default] if default else []
    if not names:
        raise UserError(f"--partition: this cluster has no default one. Give one of {', '.join(partitions)}.")
    for name in names:
        if name not in partitions:
            raise UserError(f"--partition: there is no {name!r}. This cluster has {', '.join(partitions)}.")
        limit, num_nodes = partitions[name]
        if seconds(time) > seconds(limit):
            raise UserError(
                f"--time: {time} is more than partition {name} allows, {limit}. Ask for less: a job that reaches its limit "
                "saves and is requeued by itself."
            )
        if nodes > num_nodes:
            raise UserError(f"--nodes: {nodes}, but partition {name} has {num_nodes}.")


def doubts_of_slurm(script: str) -> str | None:
    """What Slurm itself, account and GPUs included, would say of this request now. None: it would take it.

    A warning only: it says no to nodes that are drained today, too.
    """
    done = subprocess.run(["sbatch", "--test-only"], input=script, capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else f"Slurm could not run this job as it is now: {_last_line(done.stderr)}."


def check_run_dir(run_dir: Path) -> str | None:
    """Makes the folder; returns a warning if all nodes may not see it. Raises UserError if they surely don't."""
    path = run_dir.resolve()
    scratch = [*OF_ONE_NODE, *(os.environ[name] for name in ("TMPDIR", "SLURM_TMPDIR") if os.environ.get(name))]
    kind = _file_system(path)
    if owner := next((folder for folder in scratch if path.is_relative_to(folder)), None):
        why = f"is below {owner}"
    elif kind in IN_MEMORY:
        why = f"is in memory ({kind})"
    else:
        why = None
    if why is not None:
        raise UserError(
            f"run_dir: {path} {why}, which each node has for itself: a checkpoint would be in pieces, and gone on other "
            "nodes. Use a folder on a file system that all nodes share."
        )
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"run_dir: {run_dir} can't be made: {error.strerror}. Choose another folder.") from error
    if not os.access(run_dir, os.W_OK):
        raise UserError(f"run_dir: {run_dir} can't be written. Choose another folder, or mend this one.")
    if kind in ON_A_DISK:
        return f"run_dir: {path} looks like a disk of this machine alone ({kind}); all nodes must see it."
    return None


def submit(script: Path) -> str:
    """The new job's number. Raises UserError if Slurm refuses it."""
    done = subprocess.run(["sbatch", "--parsable", str(script)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UserError(f"Slurm refuses this job: {_last_line(done.stderr)}. Change what it names.")
    return done.stdout.partition(";")[0].strip()


def is_there(program: str) -> bool:
    return shutil.which(program) is not None


def _file_system(path: Path) -> str:
    """The kind of file system that a path lies on, as the kernel names it."""
    best = ("", "")
    for line in MOUNTS.read_text(encoding="utf-8").splitlines():
        _, point, kind, *_ = line.split(" ")
        point = point.replace("\\040", " ")
        if path.is_relative_to(point) and len(point) >= len(best[0]):
            best = (point, kind)
    return best[1]


def _ask(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UserError(f"`{' '.join(command)}` failed: {_last_line(done.stderr)}. Is this a machine of the cluster?")
    return done.stdout


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else "it said nothing"
