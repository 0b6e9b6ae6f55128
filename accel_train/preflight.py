"""Before the model is built: whether the ranks were started alike, and whether what one sends or writes reaches the others.

Each of these differences can go unnoticed for days: the run goes on, and trains something that no one asked for. A few
seconds here name the rank, its host, and what differs.
"""

import hashlib
import json
import os
import platform
import secrets
import socket
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from accel_train.config.load import leaves
from accel_train.config.schema import RunConfig
from accel_train.config.tasks import OWN_CLASS
from accel_train.engine.engine import Engine
from accel_train.errors import NotNow
from accel_train.rank_names import name_ranks

PACKAGE = Path(__file__).parent
PACKAGES = ("torch", "accelerate", "transformers", "deepspeed", "safetensors", "numpy")
"""Those whose version changes what is computed or how ranks speak to each other."""
MOST_CLOCK_SKEW = 5.0
CLOCK_ROUNDS = 5
"""A rank that was kept waiting by its machine looks late; the round with the least skew counts."""
VISIBLE_WITHIN = 10.0
"""Seconds that a shared file system may take to show one host's new file to another."""
MOST_NAMED = 4


def preflight(
    engine: Engine, config: RunConfig, run_dir: Path | None, options: Mapping[str, str] | None = None
) -> list[str]:
    """Compares all ranks and tries what they share; returns a line on that if there are several. All ranks call it.

    `run_dir` exists on every rank if each sees it, None: nothing is going to be shared there. `options` are those of the
    command line beside the configuration, all of them with their values. Raises UserError on every rank, with every
    difference in one message.
    """
    began = time.monotonic()
    if engine.world_size == 1:
        return []
    engine.whereabouts.begin("preflight")
    hosts = [str(host) for host in engine.gather_objects(socket.gethostname())]
    problems = [
        *_wrong_sums(engine, hosts),
        *_differences(engine, config, options or {}, hosts),
        *_wrong_clocks(engine, hosts),
        *(_unshared(engine, run_dir, hosts) if run_dir is not None else ()),
    ]
    if problems:
        raise NotNow(
            "the ranks of this launch don't fit together, so nothing was started. " + " ".join(problems), code="AT206"
        )
    places = f"{len(set(hosts))} hosts" if len(set(hosts)) > 1 else "one host"
    return [
        f"preflight: {engine.world_size} ranks on {places} share configuration, code, packages, clock and folder; "
        f"{time.monotonic() - began:.2f} s"
    ]


def code_of_package() -> dict[str, str]:
    """SHA-256 of each of our source files, by path."""
    return {
        str(path.relative_to(PACKAGE)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(PACKAGE.rglob("*.py"))
    }


def digest(thing: Any) -> str:
    """Of anything that JSON can say."""
    return hashlib.sha256(json.dumps(thing, sort_keys=True, default=str).encode()).hexdigest()


def installed(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "missing"


def _code(config: RunConfig) -> dict[str, str]:
    code = code_of_package()
    if OWN_CLASS.fullmatch(config.task):
        module = sys.modules.get(config.task.partition(":")[0])
        if module is not None and module.__file__ is not None:
            code[config.task] = hashlib.sha256(Path(module.__file__).read_bytes()).hexdigest()
    return code


def _differences(engine: Engine, config: RunConfig, options: Mapping[str, str], hosts: list[str]) -> Iterator[str]:
    """Digests first; what lies behind one is sent only where it differs."""
    settings = {path: json.dumps(value) for path, value in leaves(config.model_dump(mode="json")).items()} | {**options}
    code = _code(config)
    versions = {"python": platform.python_version()} | {name: installed(name) for name in PACKAGES}
    everyone = engine.gather_objects({"settings": digest(settings), "code": digest(code)} | versions)
    if outliers([one["settings"] for one in everyone]):
        found = _by_key(engine.gather_objects(settings), hosts)
        yield f"Configuration: {found}. Give every rank the same file and the same command line."
    if outliers([one["code"] for one in everyone]):
        found = _by_key(engine.gather_objects({path: f"version {hashed[:8]}" for path, hashed in code.items()}), hosts)
        yield f"Code: {found}. Install the same accel_train, and the same code of your own, on every host."
    if found := _by_key([{name: one[name] for name in versions} for one in everyone], hosts):
        yield f"Packages: {found}. Install the same versions on every host."


def _by_key(everyone: list[dict[str, str]], hosts: list[str]) -> str:
    """What differs between ranks, each with the ranks that stand out; empty if nothing does."""
    said = []
    for key in dict.fromkeys(key for one in everyone for key in one):
        values = [one.get(key, "missing") for one in everyone]
        if odd := outliers(values):
            theirs = sorted({values[rank] for rank in odd})
            said.append(f"{key} is {' or '.join(theirs)} on {_who(odd, hosts)}, {usual(values)} elsewhere")
    return "; ".join(said[:MOST_NAMED]) + (f"; {len(said) - MOST_NAMED} more" if len(said) > MOST_NAMED else "")


def usual(values: Sequence[str]) -> str:
    """What most ranks have; rank 0's where there are as many of another."""
    counts = Counter(values)
    return max(counts, key=lambda value: (counts[value], value == values[0]))


def outliers(values: Sequence[str]) -> list[int]:
    """Ranks that have something else than most."""
    normal = usual(values)
    return [rank for rank, value in enumerate(values) if value != normal]


def _who(ranks: list[int], hosts: list[str]) -> str:
    places = dict.fromkeys(hosts[rank] for rank in ranks)
    return f"{name_ranks(ranks)} ({', '.join([*places][:MOST_NAMED])})"


def _wrong_sums(engine: Engine, hosts: list[str]) -> Iterator[str]:
    """Every rank adds a one at its own place: the sum shows who was left out and who was counted twice."""
    ones = torch.zeros(engine.world_size, device=engine.device)
    ones[engine.rank] = 1
    summed = engine.sum_(ones).tolist()
    gathered = [number for (number,) in engine.exchange([engine.rank])]
    found = engine.gather_objects((summed, gathered))
    for rank, (sums, numbers) in enumerate(found):
        if wrong := {place: times for place, times in enumerate(sums) if times != 1}:
            counted = ", ".join(f"rank {place} {times:g} times" for place, times in [*wrong.items()][:MOST_NAMED])
            yield (
                f"All-reduce: in a sum on {_who([rank], hosts)}, {engine.device.type}, {counted} instead of once. Gradients "
                "would be wrong: look at the network library (NCCL_DEBUG=INFO), its version and its settings."
            )
            return
        if numbers != list(range(engine.world_size)):
            yield f"All-gather: {_who([rank], hosts)} received the ranks as {numbers[:MOST_NAMED]}..., not in their order."
            return


def _wrong_clocks(engine: Engine, hosts: list[str]) -> Iterator[str]:
    rounds = []
    for _ in range(CLOCK_ROUNDS):
        engine.exchange([0])  # all ranks leave it at about the same time
        clocks = [row[0] / 1e9 for row in engine.exchange([now()])]
        rounds.append([clock - statistics.median_low(clocks) for clock in clocks])
        if max(map(abs, rounds[-1])) <= MOST_CLOCK_SKEW:
            return
    skews = min(rounds, key=lambda skews: max(map(abs, skews)))
    odd = [rank for rank, skew in enumerate(skews) if abs(skew) > MOST_CLOCK_SKEW]
    said = ", ".join(
        f"{abs(skews[rank]):.0f} s {'ahead' if skews[rank] > 0 else 'behind'}" for rank in odd[:MOST_NAMED]
    )
    yield f"Clocks: that of {_who(odd, hosts)} is {said}. Logs and file times would mislead: set it (chrony, ntp)."


def now() -> int:
    """Nanoseconds of this host's clock."""
    return time.time_ns()


def _unshared(engine: Engine, run_dir: Path, hosts: list[str]) -> Iterator[str]:
    """Rank 0 leaves a file with a number that nobody can guess, and everyone looks for it."""
    number = str(engine.gather_objects(secrets.token_hex(8))[0])
    trial = run_dir / f".seen_by_all_{number}"
    engine.together(lambda: trial.write_text(number) if engine.is_main else None)
    seen = engine.exchange([_appears(trial, number)])
    if engine.is_main:
        trial.unlink(missing_ok=True)
    if blind := [rank for rank, (sees,) in enumerate(seen) if not sees]:
        folders = engine.gather_objects(str(run_dir.resolve()))
        yield (
            f"run_dir: what rank 0 ({hosts[0]}) writes in {folders[0]} does not appear on {_who(blind, hosts)} in "
            f"{folders[blind[0]]}. It must be one folder for all hosts, on a file system that they share: every rank writes "
            "its part of a checkpoint there."
        )


def _appears(file: Path, content: str) -> bool:
    limit = time.monotonic() + VISIBLE_WITHIN
    while True:
        with suppress(OSError):
            if file.read_text() == content:
                return True
            os.listdir(file.parent)  # makes NFS look again
        if time.monotonic() > limit:
            return False
        time.sleep(0.1)
