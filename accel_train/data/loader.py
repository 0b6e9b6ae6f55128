"""Batches for one rank, from any map-style dataset, with torch's loader processes underneath.

The unit of work is one micro-batch. What is in it is decided in the training process from the step alone; workers only
read. So neither their number nor how they are started changes any value, and a run starts at any step at the same cost.
"""

import os
import signal
import threading
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, get_worker_info

from accel_train.config.schema import DataSection
from accel_train.data.dataset import Dataset, UnreadableSample
from accel_train.data.order import Order, rank_share
from accel_train.data.padding import Padding, join, padding_of
from accel_train.errors import CheckFailed, UserError

PADDING_ROW = -1
WORKER_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""What schedulers, launchers and terminals send to every process of a job."""
MAX_PROBES = 100
"""Rows tried when a rank has nothing to read of its own but must know the dataset's columns."""

Batch = dict[str, Tensor]


@dataclass
class Step:
    """One rank's share of a global batch."""

    step: int
    epoch: int
    micro_batches: list[Batch]
    """As many on every rank. One has no rows only where the rank has fewer readable rows than micro-batches."""
    positions: list[int]
    """Where each micro-batch starts in the global batch, counting the samples that turned out unreadable."""
    unreadable: list[str]
    """Samples of this rank's share that were left out, each named with its reason."""


@dataclass(frozen=True)
class Request:
    """What a worker reads at once: dataset rows, and the epoch that keys their augmentation (None: no augmentation)."""

    rows: tuple[int, ...]
    epoch: int | None


class Reply(NamedTuple):
    """The rows that could be read, joined by column ({} if there are none), and the names of the others."""

    columns: Batch
    unreadable: list[str]


class Requests(Sampler[Request]):
    """Hands requests to DataLoader one by one; nothing is listed in advance."""

    def __init__(self, requests: Iterable[Request]) -> None:
        self._requests = requests

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests)


class RowReader:
    """Answers requests in a worker: the map-style dataset that DataLoader sees."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._padding = padding_of(dataset)

    def __getitem__(self, request: Request) -> Reply:
        samples, unreadable = [], []
        for row in request.rows:
            try:
                sample = self._dataset.read(row, request.epoch)
                samples.append({name: value[None] for name, value in sample.items()})
            except UnreadableSample as error:
                unreadable.append(str(error))
        return Reply(join(samples, self._padding, shared=get_worker_info() is not None), unreadable)


def train_steps(
    dataset: Dataset,
    order: Order,
    data: DataSection,
    *,
    rank: int,
    world_size: int,
    first_step: int,
    last_step: int,
    seed: int,
    pin_memory: bool,
) -> Generator[Step]:
    """This rank's steps first_step .. last_step - 1, in order.

    Samples that can't be read are left out and named in `Step.unreadable`; the caller keeps the budget. `seed` only
    sets torch's and NumPy's generators in the workers, for datasets that draw from them: ours draw from keyed ones.
    """

    def micro_batches_of(num_rows: int) -> list[slice]:
        # A smaller last batch has fewer micro-batches, and never more than the rank with the fewest rows can fill: with
        # very small micro-batches one of them then holds a row more than micro_batch_size.
        wanted = -(-num_rows // (data.micro_batch_size * world_size))
        num_micro_batches = min(wanted, num_rows // world_size)
        return rank_share(num_rows, rank, world_size, num_micro_batches, interleaved=order.buckets is not None)

    def requests() -> Iterator[Request]:
        for step in range(first_step, last_step):
            rows = order.rows(step)
            for piece in micro_batches_of(len(rows)):
                yield Request(tuple(rows[piece].tolist()), order.epoch(step))

    replies = read_requests(
        dataset,
        requests(),
        num_workers=data.num_workers,
        start_method=data.worker_start_method,
        prefetch_batches=data.prefetch_batches,
        seed=seed,
        pin_memory=pin_memory,
    )
    template: Batch = {}
    for step in range(first_step, last_step):
        pieces = micro_batches_of(order.num_rows(step))
        answered = [next(replies) for _ in pieces]
        micro_batches = [reply.columns for reply in answered]
        template = next(filter(None, micro_batches), template)
        if not all(micro_batches):
            template = template or _template(dataset)
            micro_batches = _divided_again(micro_batches, template, padding_of(dataset))
        yield Step(
            step=step,
            epoch=order.epoch(step),
            micro_batches=micro_batches,
            positions=[piece.start for piece in pieces],
            unreadable=[name for reply in answered for name in reply.unreadable],
        )


def evaluation_batches(
    dataset: Dataset,
    *,
    rank: int,
    world_size: int,
    batch_size: int,
    num_workers: int,
    start_method: Literal["fork", "spawn", "forkserver"] = "fork",
    prefetch_batches: int = 4,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """Every row of the dataset once, over all ranks, without augmentation.

    All ranks give the same number of batches with the same number of rows, so that ranks can call collectives for
    each. Rows that only fill up have `row` -1 and repeat row 0; elsewhere `row` is the dataset row. A sample that can't
    be read is an error here: a score over part of a split would not be the split's score.
    """
    (share,) = rank_share(len(dataset), rank, world_size, 1)
    length = -(-len(dataset) // world_size)
    rows = [*range(share.start, share.stop), *[PADDING_ROW] * (length - (share.stop - share.start))]
    batches = [rows[start : start + batch_size] for start in range(0, length, batch_size)]
    requests = [Request(tuple(max(row, 0) for row in batch), None) for batch in batches]
    replies = read_requests(
        dataset,
        requests,
        num_workers=min(num_workers, len(requests)),
        start_method=start_method,
        prefetch_batches=prefetch_batches,
        seed=0,
        pin_memory=pin_memory,
    )
    for batch, reply in zip(batches, replies, strict=True):
        if reply.unreadable:
            raise UserError(
                f"Evaluation needs every sample, but {len(reply.unreadable)} can't be read, the first: "
                f"{reply.unreadable[0]}. Leave it out: import the dataset again, or take the file out of its folder.",
                code="AT505",
            )
        yield reply.columns | {"row": torch.tensor(batch)}


def read_requests(
    dataset: Dataset,
    requests: Iterable[Request],
    *,
    num_workers: int,
    start_method: str,
    prefetch_batches: int,
    seed: int,
    pin_memory: bool,
) -> Iterator[Reply]:
    """Replies in the order of the requests."""
    generator = torch.Generator().manual_seed(seed)  # else DataLoader would draw from the global generator
    loader: DataLoader[Reply] = DataLoader(
        RowReader(dataset),  # type: ignore[arg-type]  # typed for integer indices
        batch_size=None,
        sampler=Requests(requests),
        num_workers=num_workers,
        multiprocessing_context=start_method if num_workers else None,
        prefetch_factor=prefetch_batches if num_workers else None,
        collate_fn=_unchanged,  # type: ignore[arg-type]  # typed for lists of samples
        worker_init_fn=partial(_prepare_worker, os.getpid()),
        pin_memory=pin_memory,
        generator=generator,
    )
    before = signal.getsignal(signal.SIGCHLD)
    with _held_back(WORKER_SIGNALS):
        replies = iter(loader)
    # The handler of torch raises wherever the process happens to be, in the middle of a collective too. Without it a dead
    # worker is noticed within five seconds where a reply is asked for, and the other ranks can be told.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, before)
    while True:
        try:
            reply = next(replies)
        except StopIteration:
            return
        except (RuntimeError, ConnectionError, EOFError) as error:
            if not _is_dead_worker(error):
                raise
            said = str(error) or type(error).__name__
            raise CheckFailed(
                f"A loader process ended without a word ({said}). It was killed, ran out of memory, or /dev/shm is "
                "full. Lower data.num_workers or data.prefetch_batches, or set data.num_workers=0 to see the error itself.",
                code="AT602",
            ) from error
        if num_workers and not pin_memory:  # a tensor in shared memory holds a file descriptor: copy it out, free it
            reply = Reply({name: column.clone() for name, column in reply.columns.items()}, reply.unreadable)
        yield reply


def _is_dead_worker(error: Exception) -> bool:
    """Torch has missed a worker, or the worker was gone while a tensor was being taken over from it.

    What a living worker raised itself has the same types, and begins with "Caught".
    """
    return not str(error).startswith("Caught ") and (
        not isinstance(error, RuntimeError) or "DataLoader worker" in str(error)
    )


def _unchanged(reply: Reply) -> Reply:
    return reply


@contextmanager
def _held_back(signals: Iterable[signal.Signals]) -> Iterator[None]:
    """A process that is started inside begins with these signals blocked: none can end it before it is prepared."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _prepare_worker(training_process: int, _worker: int) -> None:
    """Leaves signals to the training process, which must finish a step and write a checkpoint before it goes.

    Workers ignore WORKER_SIGNALS; a SIGTERM counts only if it comes from the training process. (They also leave by
    themselves when the training process is gone.)
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # anew: a fork server may be older than this loader
    for ignored in WORKER_SIGNALS[1:]:
        signal.signal(ignored, signal.SIG_IGN)
    threading.Thread(target=_leave_when_told, args=(training_process,), daemon=True).start()


def _leave_when_told(training_process: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != training_process:
        pass
    os._exit(0)


def _divided_again(micro_batches: list[Batch], template: Batch, padding: Padding) -> list[Batch]:
    """Shares the rows of all micro-batches out evenly, so that none is empty as long as there are rows enough."""
    filled = [batch for batch in micro_batches if batch]
    columns = join(filled, padding) or {name: column[:0] for name, column in template.items()}
    num_rows = len(next(iter(columns.values())))
    pieces = rank_share(num_rows, 0, 1, len(micro_batches))
    return [{name: column[piece] for name, column in columns.items()} for piece in pieces]


def _template(dataset: Dataset) -> Batch:
    """One readable row, for its column names, types and shapes."""
    for row in range(min(len(dataset), MAX_PROBES)):
        try:
            return {name: value[None] for name, value in dataset.read(row, None).items()}
        except UnreadableSample as error:
            reason = str(error)
    raise UserError(f"None of the first {MAX_PROBES} samples can be read; the last reason was: {reason}.", code="AT505")
