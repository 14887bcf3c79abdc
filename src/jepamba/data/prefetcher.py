"""Reads the windows of the next step in a thread while a step runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from jepamba.data.loader import Batch, Loader


class Prefetcher:
    """Wraps a loader: after each `next`, a thread prepares the following batch with the same arguments.

    `state` counts only the batches returned by `next`. With `pin`, batches are in pinned memory, from which a GPU can
    copy asynchronously.
    """

    def __init__(self, loader: Loader, pin: bool = False) -> None:
        self.loader, self.pin = loader, pin
        self._worker = ThreadPoolExecutor(1, "loader")
        self._pending: Future[Batch] | None = None
        self._request: tuple[int, tuple[range, ...]] = (0, ())
        self._save_position()

    def next(self, count: int, rows: Sequence[range] = ()) -> Batch:
        """Return the next `count` windows, or `rows` of them (see `Loader.next`). Re-raises an error of the thread."""
        batch = self.peek(count, rows)
        self._save_position()
        self._pending = self._worker.submit(self._load, *self._request)
        return batch

    def peek(self, count: int, rows: Sequence[range] = ()) -> Batch:
        """Return the batch that `next` would return, without advancing. Nothing is read twice."""
        request = (count, tuple(rows))
        if self._pending is not None and self._request != request:
            self.restore(self._state)
        if self._pending is None:
            self._request, self._pending = request, self._worker.submit(self._load, *request)
        return self._pending.result()

    def state(self) -> dict[str, int]:
        """Return the position after the last batch of `next`; see `Loader.state`."""
        return self._state

    @property
    def epoch_float(self) -> float:
        """Epochs read so far, including the fraction of the current one."""
        return self._epoch

    def restore(self, state: Mapping[str, int]) -> None:
        """Restore a position from `state()`; see `Loader.restore`."""
        if self._pending is not None:
            # Wait for the thread, and discard its batch or its error.
            self._pending.exception()
            self._pending = None
            self.loader.restore(self._state)
        self.loader.restore(state)
        self._save_position()

    def _save_position(self) -> None:
        self._state, self._epoch = self.loader.state(), self.loader.epoch_float

    def _load(self, count: int, rows: Sequence[range]) -> Batch:
        batch = self.loader.next(count, rows)
        if not self.pin:
            return batch
        return replace(
            batch,
            inputs_BT=batch.inputs_BT.pin_memory(),
            targets_BT=batch.targets_BT.pin_memory(),
            reset_BT=batch.reset_BT.pin_memory(),
        )
