"""Write checkpoints in a thread while training continues. The step waits only for a copy in memory."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from jepamba.errors import UserError
from jepamba.train.checkpoint import save_checkpoint


class CheckpointWriter:
    """Writes checkpoints into `folder`, the newest `keep` of them, at most one at a time.

    `save` copies the tensors, which may change as soon as it returns. On a CPU it copies them into host memory that is
    reused for every checkpoint. On a GPU it copies them on the device, from where a separate stream moves them into
    pinned memory. The thread also computes the checksum, writes, and waits for the disk. The context waits on exit for
    the last checkpoint, except after an interrupt.
    """

    def __init__(self, folder: Path, keep: int, device: torch.device) -> None:
        self.folder, self.keep, self.device = folder, keep, device
        self._thread: Thread | None = None
        self._host_copy: dict[str, Tensor] = {}
        self._failure: BaseException | None = None
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or issubclass(kind, Exception):
            self._join()

    @property
    def prepared(self) -> bool:
        """Whether the host memory for a checkpoint is allocated."""
        return bool(self._host_copy)

    def prepare(self, tensors: Mapping[str, Tensor]) -> None:
        """Allocate the host memory for `tensors`, so that the first checkpoint does not have to.

        Pinning memory in the writer's thread would block the driver, and so the step that runs meanwhile.
        """
        pin = self._stream is not None
        self._host_copy = {
            # Zeroed, because the system provides memory only when it is first written to.
            name: torch.empty(value.shape, dtype=value.dtype, pin_memory=pin).zero_()
            for name, value in tensors.items()
        }
        if pin:
            # Also reserve the memory of the copy on the device, which PyTorch's allocator then keeps.
            with contextlib.suppress(torch.cuda.OutOfMemoryError):
                _clones(tensors)

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Start writing the checkpoint of `step`, after the previous one is done. `state` holds JSON values."""
        self._join()
        staged = self._stage(tensors)
        # A daemon: a second Ctrl-C ends the process at once, and a partial folder is no checkpoint.
        self._thread = Thread(
            target=self._work, args=(step, staged, copy.deepcopy(dict(state))), name="checkpoint", daemon=True
        )
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._thread is not None and self._thread.is_alive()

    def failure(self, wait: bool = False) -> str | None:
        """The message of a checkpoint that could not be written, reported once; None if there is none.

        With `wait`, it first waits for the checkpoint that is being written. An unexpected error in the thread is
        raised here.
        """
        if wait:
            self._join()
        failure, self._failure = self._failure, None
        if failure is None or isinstance(failure, UserError):
            return None if failure is None else str(failure)
        raise failure

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _stage(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A copy of `tensors` that later steps do not change, made in stream order."""
        if self._stream is None:
            return self._copy_to_host(tensors)
        try:
            staged = _clones(tensors)
        except torch.cuda.OutOfMemoryError:
            # The device has no memory for a copy, so the next step waits for the transfer to the host.
            staged = self._copy_to_host(tensors)
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        return staged

    def _work(self, step: int, staged: dict[str, Tensor], state: dict[str, Any]) -> None:
        try:
            memory = staged
            if self._stream is not None:
                with torch.cuda.device(self.device), torch.cuda.stream(self._stream):
                    memory = staged if staged is self._host_copy else self._copy_to_host(staged)
                    self._stream.synchronize()
            if memory is not staged:
                # Only now: after this the allocator may reuse the device memory.
                staged.clear()
            save_checkpoint(self.folder, step, memory, state, self.keep)
        except BaseException as error:
            self._failure = error

    def _copy_to_host(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copy `tensors` into the host memory, which is pinned if they are on a GPU."""
        if self._host_copy.keys() != tensors.keys() or any(
            value.shape != tensors[name].shape or value.dtype != tensors[name].dtype
            for name, value in self._host_copy.items()
        ):
            self.prepare(tensors)
        for name, value in tensors.items():
            self._host_copy[name].copy_(value.detach(), non_blocking=True)
        return self._host_copy


def _clones(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in tensors.items()}
