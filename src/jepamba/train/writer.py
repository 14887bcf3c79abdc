"""Checkpoints written while the run goes on: the step waits for a copy in memory, a thread does the rest."""

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

    What is saved is copied when `save` is called and may change right after: on a CPU into memory that is used again
    for the next one; on a GPU next to the originals, from where a stream of its own brings it into pinned memory. The
    thread also computes the checksum, writes, and waits for the disk. As a context it waits for the last one on the
    way out, except for an interrupt.
    """

    def __init__(self, folder: Path, keep: int, device: torch.device) -> None:
        self.folder, self.keep, self.device = folder, keep, device
        self._thread: Thread | None = None
        self._kept: dict[str, Tensor] = {}
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
        """Whether there is memory to copy a checkpoint into."""
        return bool(self._kept)

    def prepare(self, tensors: Mapping[str, Tensor]) -> None:
        """Make that memory, for such tensors, so that the first checkpoint need not: a thread that pins it holds up the
        step that runs meanwhile for about as long, since the driver does one thing at a time."""
        pin = self._stream is not None
        self._kept = {
            # Written to once: until then the system has not given it.
            name: torch.empty(value.shape, dtype=value.dtype, pin_memory=pin).zero_()
            for name, value in tensors.items()
        }
        if pin:
            # And the room beside the originals, which PyTorch then keeps.
            with contextlib.suppress(torch.cuda.OutOfMemoryError):
                _copies(tensors)

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Start on the checkpoint of `step`, after the one before it is done. `state` must be JSON."""
        self._join()
        staged = self._staged(tensors)
        # A daemon: a second Ctrl-C ends the process at once, and what is half written is no checkpoint.
        self._thread = Thread(
            target=self._work, args=(step, staged, copy.deepcopy(dict(state))), name="checkpoint", daemon=True
        )
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._thread is not None and self._thread.is_alive()

    def failure(self, wait: bool = False) -> str | None:
        """One line on a checkpoint that could not be written, once; None while all is well.

        With `wait`, after the one in flight has ended. Raises what is no fault of the disk.
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

    def _staged(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A copy that nothing else changes, made in the order of the device's work."""
        if self._stream is None:
            return self._into_memory(tensors)
        try:
            staged = _copies(tensors)
        except torch.cuda.OutOfMemoryError:
            # No room beside the originals: the next step waits for the way to the host.
            staged = self._into_memory(tensors)
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        return staged

    def _work(self, step: int, staged: dict[str, Tensor], state: dict[str, Any]) -> None:
        try:
            memory = staged
            if self._stream is not None:
                with torch.cuda.device(self.device), torch.cuda.stream(self._stream):
                    memory = staged if staged is self._kept else self._into_memory(staged)
                    self._stream.synchronize()
            if memory is not staged:
                # Only now: the GPU's memory may be given to others once nothing reads it.
                staged.clear()
            save_checkpoint(self.folder, step, memory, state, self.keep)
        except BaseException as error:
            self._failure = error

    def _into_memory(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`tensors` in the host's memory, in the same places as last time; pinned where a GPU sends them."""
        if self._kept.keys() != tensors.keys() or any(
            kept.shape != tensors[name].shape or kept.dtype != tensors[name].dtype for name, kept in self._kept.items()
        ):
            self.prepare(tensors)
        for name, value in tensors.items():
            self._kept[name].copy_(value.detach(), non_blocking=True)
        return self._kept


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in tensors.items()}
