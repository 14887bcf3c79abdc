"""Loads windows of a token stream in a seeded order. A few integers restore the position.

Shapes: B windows, T tokens each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int64
from numpy.typing import NDArray
from torch import Tensor

from jepamba.data.order import Permutation
from jepamba.data.tokens import Tokens
from jepamba.errors import UserError

SHUFFLE_VERSION = 2
"""Increment this when a seed gives a different order than before. Positions of an older order are invalid."""


@dataclass(frozen=True)
class Batch:
    """Windows for one forward pass, on the CPU."""

    inputs_BT: Int64[Tensor, "B T"]
    targets_BT: Int64[Tensor, "B T"]
    """The inputs shifted by one token."""
    reset_BT: Bool[Tensor, "B T"]
    """True where a document starts. The model resets its recurrent state there."""

    def part(self, start: int, stop: int) -> Batch:
        """Return windows `start` to `stop`."""
        rows = slice(start, stop)
        return Batch(self.inputs_BT[rows], self.targets_BT[rows], self.reset_BT[rows])


class Loader:
    """Yields batches of windows of `seq_len` inputs without end. Each window occurs once per epoch.

    Arguments:
        tokens: the token stream.
        seq_len: T, inputs of a window.
        seed: seed of the order.
        shuffle: use a new permutation and a new window offset in each epoch. Otherwise read in order from token 0.
        reset: mark document starts in `Batch.reset_BT`.

    Raises `UserError` if the stream is too short for one window and its last target.
    """

    def __init__(self, tokens: Tokens, seq_len: int, seed: int, shuffle: bool = True, reset: bool = True) -> None:
        if seq_len < 1:
            raise ValueError(f"windows of {seq_len} tokens")
        if len(tokens) < seq_len + 1:
            raise UserError(
                f"the text has {len(tokens)} tokens, less than one window of {seq_len} and its last target: "
                "use more text or a smaller data.seq_len"
            )
        self.tokens, self.seq_len, self.seed, self.shuffle = tokens, seq_len, seed, shuffle
        self._bos = tokens.bos_id if reset else None
        self._seek(0, 0)

    def _seek(self, epoch: int, position: int) -> None:
        """Go to window `position` of `epoch`."""
        num_targets = len(self.tokens) - 1
        self._offset = 0
        if self.shuffle:
            random = np.random.default_rng((self.seed, epoch))
            self._offset = int(random.integers(min(self.seq_len, num_targets - self.seq_len + 1)))
        self._windows = (num_targets - self._offset) // self.seq_len
        # Computed on demand, because a list of all windows would take gigabytes for a large corpus.
        self._order = Permutation(self._windows, (self.seed, epoch, 1)) if self.shuffle else None
        self._epoch, self._position = epoch, position

    @property
    def windows(self) -> int:
        """Windows of the current epoch. With `shuffle`, epochs can differ by one window."""
        return self._windows

    def _next_starts(self, count: int) -> NDArray[np.int64]:
        """Return the first tokens (B,) of the next `count` windows, across epochs, and advance the position."""
        parts = []
        while count:
            if self._position == self._windows:
                self._seek(self._epoch + 1, 0)
            taken = min(count, self._windows - self._position)
            parts.append(self._starts(np.arange(self._position, self._position + taken)))
            self._position += taken
            count -= taken
        return np.concatenate(parts)

    def _starts(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the first tokens of the windows at `positions` (B,) of the current epoch."""
        windows = positions if self._order is None else self._order(positions)
        return self._offset + self.seq_len * windows

    @property
    def epoch_float(self) -> float:
        """Epochs read so far, including the fraction of the current one."""
        return self._epoch + self._position / self.windows

    def next(self, count: int, rows: Sequence[range] = ()) -> Batch:
        """Return the next `count` windows, across epochs. With `rows`, read and return only these of them."""
        if count < 1:
            raise ValueError(f"a batch of {count} windows")
        starts_B = self._next_starts(count)
        if rows:
            starts_B = starts_B[np.concatenate([np.arange(part.start, part.stop) for part in rows])]
        starts = starts_B.tolist()
        for start in starts:
            self.tokens.prefetch(start, start + self.seq_len + 1)
        windows = np.empty((len(starts), self.seq_len + 1), dtype=np.int64)
        for row, start in enumerate(starts):
            windows[row] = self.tokens.read(start, start + self.seq_len + 1)
        tokens_BT = torch.from_numpy(windows)
        inputs_BT = tokens_BT[:, :-1].contiguous()
        reset_BT = torch.zeros_like(inputs_BT, dtype=torch.bool) if self._bos is None else inputs_BT == self._bos
        return Batch(inputs_BT, tokens_BT[:, 1:].contiguous(), reset_BT)

    def state(self) -> dict[str, int]:
        """Return the position, for `restore` of a loader with the same tokens and settings."""
        return {
            "epoch": self._epoch,
            "position": self._position,
            "tokens": len(self.tokens),
            "sequence": self.seq_len,
            "seed": self.seed,
            "shuffle": SHUFFLE_VERSION if self.shuffle else 0,
        }

    def restore(self, state: Mapping[str, int]) -> None:
        """Restore a position from `state()`. The following batches are the same as after that call.

        Raises `UserError` for a state of other tokens or other settings.
        """
        current = self.state()
        if set(state) != set(current) or not all(type(value) is int for value in state.values()):
            raise UserError("the position in the data is damaged")
        for name in current.keys() - {"epoch", "position"}:
            if state[name] != current[name]:
                raise UserError(
                    f"the position in the data was saved with {name} = {state[name]}, now it is {current[name]}: "
                    "the data or its settings changed"
                )
        epoch, position = state["epoch"], state["position"]
        if not 0 <= epoch < 2**31:
            raise UserError("the position in the data is damaged")
        self._seek(epoch, 0)
        if not 0 <= position <= self.windows:
            self._seek(current["epoch"], current["position"])
            raise UserError("the position in the data is damaged")
        self._position = position
