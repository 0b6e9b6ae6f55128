"""What a save in the background needs on each rank: memory for a copy, and a thread that copies and writes."""

import errno
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from threading import Event
from typing import TypeVar

import torch
from torch import Tensor

from accel_train.checkpoint.files import BUFFER
from accel_train.checkpoint.pieces import Pieces

Result = TypeVar("Result")


class Writer:
    """One thread, started when it is first needed."""

    def __init__(self) -> None:
        self.given_up = Event()
        """Set when nobody waits for what is being written."""
        self._thread: ThreadPoolExecutor | None = None

    def start(self, action: Callable[[], Result]) -> Future[Result]:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "checkpoint")
        return self._thread.submit(action)

    def close(self) -> None:
        self.given_up.set()
        if self._thread is not None:
            self._thread.shutdown()


class HostCopy:
    """Host memory that a checkpoint is copied to before it is written in the background; the next one takes it again.

    A copy has two halves, so that training need not wait for it: `begin` between two steps, and `finish` in a thread while
    the next step computes its gradients. From `begin` on, weights and optimizer state must stand still until `is_done`.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._to_come: list[tuple[Tensor, Tensor]] = []
        self.pieces = Pieces("")
        """What was begun last."""
        self.is_done = Event()

    def begin(self, pieces: Pieces) -> None:
        """Finds memory for these, and copies buffers, which a forward pass may change. Raises OSError without memory."""
        sizes = [tensor.numel() * tensor.element_size() for tensor in pieces.tensors.values()]
        if len(self._memory) != sum(sizes):
            self._memory, self.pieces = torch.empty(0, dtype=torch.uint8), Pieces("")  # before more memory is asked for
            self._memory = self._allocated(sum(sizes))
        copies = {
            key: memory.view(tensor.dtype)
            for memory, (key, tensor) in zip(self._memory.split(sizes), pieces.tensors.items(), strict=True)
        }
        self.is_done.clear()
        self._to_come = []
        for key, tensor in pieces.tensors.items():
            if key.startswith(f"{BUFFER}|"):
                copies[key].copy_(tensor, non_blocking=True)
            else:
                self._to_come.append((copies[key], tensor))
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream())  # the last update comes first
        self.pieces = Pieces(pieces.file_name, copies, pieces.index)

    def finish(self) -> None:
        """Copies the rest, on a GPU beside what it computes. In any thread."""
        try:
            with torch.cuda.stream(self._stream) if self._stream is not None else nullcontext():
                for copy, tensor in self._to_come:
                    copy.copy_(tensor, non_blocking=True)
            if self._stream is not None:
                self._stream.synchronize()
        finally:
            self._to_come = []
            self.is_done.set()

    def _allocated(self, num_bytes: int) -> Tensor:
        try:
            return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=self._stream is not None)
        except RuntimeError as error:
            why = f"no host memory for a copy of {num_bytes / 2**30:.1f} GiB (checkpoint.in_background)"
            raise OSError(errno.ENOMEM, why) from error
