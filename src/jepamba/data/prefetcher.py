"""The windows of the next step, read while a step runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from jepamba.data.loader import Batch, Loader


class Prefetcher:
    """A loader one batch ahead: as soon as a batch is taken, a thread makes the next of the same kind.

    Its position is that of the batches taken, never that of the one being made. With `pin` the batches lie in pinned
    memory, from which a GPU copies while it computes.
    """

    def __init__(self, loader: Loader, pin: bool = False) -> None:
        self.loader, self.pin = loader, pin
        self._worker = ThreadPoolExecutor(1, "loader")
        self._making: Future[Batch] | None = None
        self._kind: tuple[int, tuple[range, ...]] = (0, ())
        self._note_position()

    def next(self, count: int, rows: Sequence[range] = ()) -> Batch:
        """The next `count` windows, or `rows` of them (see `Loader.next`); what went wrong in making them is raised
        here."""
        batch = self.peek(count, rows)
        self._note_position()
        self._making = self._worker.submit(self._make, *self._kind)
        return batch

    def peek(self, count: int, rows: Sequence[range] = ()) -> Batch:
        """What `next` would give; the position stays, and nothing is read twice."""
        kind = (count, tuple(rows))
        if self._making is not None and self._kind != kind:
            self.restore(self._state)
        if self._making is None:
            self._kind, self._making = kind, self._worker.submit(self._make, *kind)
        return self._making.result()

    def state(self) -> dict[str, int]:
        """The position after the last batch taken; see `Loader.state`."""
        return self._state

    @property
    def epoch_float(self) -> float:
        """Epochs passed, with the share of the current one."""
        return self._epoch

    def restore(self, state: Mapping[str, int]) -> None:
        """Go to where `state()` was taken; see `Loader.restore`."""
        if self._making is not None:
            # Whatever it made, or failed to make, is not wanted any more.
            self._making.exception()
            self._making = None
            self.loader.restore(self._state)
        self.loader.restore(state)
        self._note_position()

    def _note_position(self) -> None:
        self._state, self._epoch = self.loader.state(), self.loader.epoch_float

    def _make(self, count: int, rows: Sequence[range]) -> Batch:
        batch = self.loader.next(count, rows)
        if not self.pin:
            return batch
        return replace(
            batch,
            inputs_BT=batch.inputs_BT.pin_memory(),
            targets_BT=batch.targets_BT.pin_memory(),
            reset_BT=batch.reset_BT.pin_memory(),
        )
