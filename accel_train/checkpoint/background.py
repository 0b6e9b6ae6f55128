"""What a save in the background needs on each rank: memory for a copy, and a thread that writes it."""

import errno
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from typing import TypeVar

import torch
from torch import Tensor

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
    """Host memory that a checkpoint is copied to before it is written in the background; the next one takes it again."""

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"
        self._memory = torch.empty(0, dtype=torch.uint8)
        self.pieces = Pieces("")
        """What was taken last."""

    def take(self, pieces: Pieces) -> None:
        """Copies these. Raises OSError if there is no memory for them."""
        sizes = [tensor.numel() * tensor.element_size() for tensor in pieces.tensors.values()]
        if len(self._memory) != sum(sizes):
            self._memory, self.pieces = torch.empty(0, dtype=torch.uint8), Pieces("")  # before more memory is asked for
            self._memory = self._allocated(sum(sizes))
        copies = [
            memory.view(tensor.dtype)
            for memory, tensor in zip(self._memory.split(sizes), pieces.tensors.values(), strict=True)
        ]
        for copy, tensor in zip(copies, pieces.tensors.values(), strict=True):
            copy.copy_(tensor, non_blocking=self._on_cuda)
        if self._on_cuda:
            torch.cuda.synchronize()
        self.pieces = Pieces(pieces.file_name, dict(zip(pieces.tensors, copies, strict=True)), pieces.index)

    def _allocated(self, num_bytes: int) -> Tensor:
        try:
            return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=self._on_cuda)
        except RuntimeError as error:
            why = f"no host memory for a copy of {num_bytes / 2**30:.1f} GiB (checkpoint.in_background)"
            raise OSError(errno.ENOMEM, why) from error
