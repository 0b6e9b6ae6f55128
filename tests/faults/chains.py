"""What is injected, as tables: chains of faults, each in one run directory, and each fault followed by another start.

A chain's run has 16 steps, an epoch every 4, an evaluation and a checkpoint every 3 and at the end, if nothing else is said.
"""

from collections import Counter
from dataclasses import dataclass

from accel_train.config.faults import Fault, read_faults


@dataclass(frozen=True)
class Start:
    """One start of a run with one fault, with which it ends before the run is over."""

    inject: str
    engine: str
    ranks: int

    @property
    def fault(self) -> Fault:
        (fault,) = read_faults(self.inject)
        return fault


@dataclass(frozen=True)
class Chain:
    name: str
    starts: tuple[Start, ...]
    overrides: tuple[str, ...] = ()
    always: str = ""
    """A fault that no run dies of, injected into every start and into the run that the chain is compared with."""
    save_every: int = 3
    end: int = 16

    @property
    def exactly(self) -> bool:
        """Whether all starts have one engine and number of ranks, so that every bit must be the same."""
        return len({(start.engine, start.ranks) for start in self.starts}) == 1


EVERY_MOMENT = """
    kill:rank=all:at=start@0    kill:rank=0:at=evaluation@0   kill:rank=1@1               kill:rank=0:at=update@2
    kill:rank=1:at=write@3      torn-checkpoint@3             kill:rank=0:at=publish@3    kill:rank=0:at=link@3
    kill:rank=0:at=prune@3      kill:rank=1:at=start@3        kill:rank=all@4             signal:TERM:rank=1@5
    kill:rank=0@5               kill:rank=1:at=update@6       kill:rank=1:at=evaluation@6 disk-full@6
    kill:rank=0:at=prune@6      signal:INT:rank=0@8           kill:rank=1@8               kill:rank=all:at=update@9
    corrupt-checkpoint@9        disk-full:rank=1@9            kill:rank=1:at=start@7      kill:rank=0:at=publish@9
    kill:rank=0@10              signal:USR1:rank=1@11         torn-checkpoint:rank=1@12   kill:rank=0:at=link@12
    kill:rank=1@13              kill:rank=all@14              corrupt-checkpoint@15       kill:rank=0:at=evaluation@15
    kill:rank=1@16              kill:rank=1:at=write@16       kill:rank=0:at=publish@16   kill:rank=0:at=link@16
"""
AROUND_A_PHASE = "kill:rank=0@4 kill:rank=0:at=publish@4 kill:rank=1:at=phase@4 kill:rank=0:at=update@5 kill:rank=1@7"
IN_BACKGROUND = """
    kill:rank=1:at=write@3      torn-checkpoint@3             kill:rank=0:at=publish@3    kill:rank=0:at=link@3
    disk-full:rank=0@6          kill:rank=0:at=publish@6      kill:rank=0:at=prune@6      corrupt-checkpoint@9
"""
WITH_WORKERS = (
    "kill:rank=1@2 kill-worker:rank=0@5 kill:rank=0:at=evaluation@6 kill-worker:rank=1@8 signal:TERM:rank=0@9"
)
ROWS_LOST = "kill:rank=1@3 kill:rank=0:at=write@6 kill:rank=1@8 signal:INT:rank=1@12 kill:rank=0@15"
STEP_LOST = "kill:rank=1@6 kill:rank=0:at=publish@6 kill:rank=0@8"
ONE_RANK_SLOW = "kill:rank=1@4 kill:rank=0:at=update@9 signal:TERM:rank=1@13"
STUCK = "hang:rank=1:at=update@5"
MOVED = """
    kill:rank=1@2 ddp 2,              kill:rank=0:at=update@4 ddp 1,      torn-checkpoint@6 fsdp2 2,
    kill:rank=0:at=link@6 zero3 2,    signal:TERM:rank=0@9 zero2 1,       kill:rank=1:at=write@9 zero1 2,
    disk-full@9 ddp 2,                kill:rank=0@11 fsdp2 1,             signal:USR1:rank=1@12 zero3 2,
    corrupt-checkpoint@12 zero2 2,    kill:rank=all:at=evaluation@15 ddp 1, kill:rank=1@16 zero1 2
"""
SAME_COMMAND = "kill:rank=1@2,disk-full@3,kill:rank=0:at=publish@6,signal:TERM:rank=0@8,kill:rank=all:at=update@13"
"""Given to every start of one run: each of them fires once."""

PHASE = "{name: whole, start: 4 steps, towers: [{name: image, lr: 0.0005}], schedule: {name: linear, warmup_steps: 2}}"
PHASES = (
    "num_epochs=null",
    "max_steps=8",
    "evaluation.evaluate_every=null",
    "checkpoint.save_every=2 steps",
    f"phases=[{PHASE}]",
)


def starts_of(table: str, engine: str, ranks: int = 2) -> tuple[Start, ...]:
    """On one rank, what a table does to rank 1 happens to rank 0."""
    return tuple(
        Start(text if ranks > 1 else text.replace("rank=1", "rank=0"), engine, ranks) for text in table.split()
    )


def moved_starts() -> tuple[Start, ...]:
    parts = [part.split() for part in MOVED.split(",")]
    return tuple(Start(text, engine, int(ranks)) for text, engine, ranks in parts)


CHAINS = [
    *(
        Chain(f"every moment, {engine} on {ranks}", starts_of(EVERY_MOMENT, engine, ranks))
        for engine, ranks in [("ddp", 2), ("zero3", 2), ("fsdp2", 2), ("ddp", 1)]
    ),
    # ZeRO-1 and ZeRO-2 keep their state alike, so each takes a half.
    Chain("every moment to step 6, zero1 on 2", starts_of(EVERY_MOMENT, "zero1")[:17]),
    Chain("every moment from step 8, zero2 on 2", starts_of(EVERY_MOMENT, "zero2")[17:]),
    *(
        Chain(f"two phases, {engine}", starts_of(AROUND_A_PHASE, engine), PHASES, save_every=2, end=8)
        for engine in ("ddp", "zero2", "fsdp2")
    ),
    Chain("background saves", starts_of(IN_BACKGROUND, "zero2"), ("checkpoint.in_background=true",)),
    Chain("loader processes", starts_of(WITH_WORKERS, "ddp"), ("data.num_workers=1",)),
    Chain(
        "unreadable sample",
        starts_of(ROWS_LOST, "ddp"),
        ("data.num_workers=1", "data.max_unreadable_samples=8"),
        always="unreadable-sample:17",
    ),
    *(Chain(f"NaN, {engine}", starts_of(STEP_LOST, engine), always="nan:rank=1@5") for engine in ("ddp", "zero3")),
    Chain("slow rank", starts_of(ONE_RANK_SLOW, "fsdp2"), always="slow:rank=1:0.02s"),
    Chain("stuck rank", starts_of(STUCK, "fsdp2"), ("hang_minutes=0.1",)),
    Chain("other engines and ranks", moved_starts()),
]


def fault_counts() -> Counter[tuple[str, str]]:
    """How many faults of a kind, with its moment where one can be chosen, are injected into an engine."""
    counts: Counter[tuple[str, str]] = Counter()
    for chain in CHAINS:
        counts.update((name_of(start.fault), engine_of(start)) for start in chain.starts)
        if chain.always:
            first = chain.starts[0]
            counts[name_of(read_faults(chain.always)[0]), engine_of(first)] += 1
    counts.update((name_of(fault), "ddp") for fault in read_faults(SAME_COMMAND))
    return counts


def name_of(fault: Fault) -> str:
    return f"{fault.kind}, {fault.moment}" if fault.kind in ("kill", "hang") else fault.kind


def engine_of(start: Start) -> str:
    return start.engine if start.ranks > 1 else "one rank"
