"""Windows of a token stream, in an order that a seed decides and a few numbers can restore.

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

SHUFFLE = 2
"""Counts up when the same seed gives another order than before: a position in an order is of no use in another."""


@dataclass(frozen=True)
class Batch:
    """Windows for one forward pass; on the CPU."""

    inputs_BT: Int64[Tensor, "B T"]
    targets_BT: Int64[Tensor, "B T"]
    """The inputs shifted by one: what each position is to predict."""
    reset_BT: Bool[Tensor, "B T"]
    """True where a document starts, that is, where the recurrent state is to be forgotten."""
    continues_B: NDArray[np.bool_]
    """Whether each window continues the one that came `rows` windows before it; false without `rows`."""

    def part(self, start: int, stop: int) -> Batch:
        """Some of the windows."""
        rows = slice(start, stop)
        return Batch(self.inputs_BT[rows], self.targets_BT[rows], self.reset_BT[rows], self.continues_B[rows])


class Loader:
    """Endless batches of windows of `sequence` inputs; each window of an epoch comes exactly once.

    Arguments: `tokens`; `sequence`, T; `seed` of the order; `shuffle`: a new permutation each epoch, and windows cut at
    a new offset, so that no place is always a window's edge; off: in order, from the first token. `reset`: mark where
    documents start. `rows`, not with `shuffle`: batches have so many rows, each of which walks along its own stretch of
    the stream, window by window; the stretches are equal, and what is left over at the stream's end is not read.
    Raises `UserError` if the stream is shorter than one window, or one for each of the `rows`, and its last target.
    """

    def __init__(
        self, tokens: Tokens, seq_len: int, seed: int, shuffle: bool = True, reset: bool = True, rows: int = 0
    ) -> None:
        if seq_len < 1 or rows < 0 or (rows and shuffle):
            raise ValueError(f"windows of {seq_len} tokens in {rows} rows, shuffled: {shuffle}")
        if len(tokens) < seq_len + 1:
            raise UserError(
                f"the text has {len(tokens)} tokens, less than one window of {seq_len} and its last target: "
                "give more text or a smaller data.seq_len"
            )
        if len(tokens) < rows * seq_len + 1:
            raise UserError(
                f"the text has {len(tokens)} tokens, too few for {rows} parallel streams with a window of {seq_len} "
                "each: give more text or a smaller train.tokens_per_micro"
            )
        self.tokens, self.seq_len, self.seed, self.shuffle, self.rows = tokens, seq_len, seed, shuffle, rows
        self._bos = tokens.bos_id if reset else None
        self._open(0, 0)

    def _open(self, epoch: int, position: int) -> None:
        """Go to window `position` of `epoch`."""
        spare = len(self.tokens) - 1
        self._offset = 0
        if self.shuffle:
            random = np.random.default_rng((self.seed, epoch))
            self._offset = int(random.integers(min(self.seq_len, spare - self.seq_len + 1)))
        self._windows = (spare - self._offset) // self.seq_len
        if self.rows:
            self._windows -= self._windows % self.rows
        # Computed place by place: a list of all windows would take gigabytes for a large corpus.
        self._order = Permutation(self._windows, (self.seed, epoch, 1)) if self.shuffle else None
        self._epoch, self._position = epoch, position

    @property
    def windows(self) -> int:
        """Windows of the current epoch (one more or less than another epoch's, where shuffled)."""
        return self._windows

    def _take(self, count: int) -> NDArray[np.int64]:
        """Where the next `count` windows start (B,), across the ends of epochs; the position moves behind them."""
        parts = []
        while count:
            if self._position == self._windows:
                self._open(self._epoch + 1, 0)
            taken = min(count, self._windows - self._position)
            parts.append(self._starts(np.arange(self._position, self._position + taken)))
            self._position += taken
            count -= taken
        return np.concatenate(parts)

    def _starts(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where the windows at `places` (B,) of the current epoch's order start."""
        windows = places
        if self._order is not None:
            windows = self._order(places)
        elif self.rows:
            # Row by row in each batch: the first window of every stretch, then the second of every stretch.
            windows = places % self.rows * (self._windows // self.rows) + places // self.rows
        return self._offset + self.seq_len * windows

    @property
    def epoch_float(self) -> float:
        """Epochs passed, with the share of the current one."""
        return self._epoch + self._position / self.windows

    def next(self, count: int, rows: Sequence[range] = ()) -> Batch:
        """The next `count` windows, across the ends of epochs; with `rows`, only these of them are read and given."""
        if count < 1 or (self.rows and count % self.rows):
            raise ValueError(f"a batch of {count} windows")
        # Without `shuffle`, which excludes rows, epochs are of one length.
        places_B = (self._position + np.arange(count)) % self._windows
        continues_B = places_B >= self.rows if self.rows else np.zeros(count, dtype=np.bool_)
        starts_B = self._take(count)
        if rows:
            wanted = np.concatenate([np.arange(part.start, part.stop) for part in rows])
            starts_B, continues_B = starts_B[wanted], continues_B[wanted]
        starts = starts_B.tolist()
        for start in starts:
            self.tokens.prefetch(start, start + self.seq_len + 1)
        windows = np.empty((len(starts), self.seq_len + 1), dtype=np.int64)
        for row, start in enumerate(starts):
            windows[row] = self.tokens.read(start, start + self.seq_len + 1)
        both = torch.from_numpy(windows)
        inputs_BT = both[:, :-1].contiguous()
        reset_BT = torch.zeros_like(inputs_BT, dtype=torch.bool) if self._bos is None else inputs_BT == self._bos
        return Batch(inputs_BT, both[:, 1:].contiguous(), reset_BT, continues_B)

    def state(self) -> dict[str, int]:
        """The position, for `restore` of a loader over the same tokens with the same settings."""
        return {
            "epoch": self._epoch,
            "position": self._position,
            "tokens": len(self.tokens),
            "sequence": self.seq_len,
            "seed": self.seed,
            "shuffle": SHUFFLE if self.shuffle else 0,
            **({"rows": self.rows} if self.rows else {}),
        }

    def restore(self, state: Mapping[str, int]) -> None:
        """Go to where `state()` was taken; the batches that follow are those that followed then.

        Raises `UserError` for the state of other tokens or other settings: their windows are not these.
        """
        here = self.state()
        if set(state) != set(here) or not all(type(value) is int for value in state.values()):
            raise UserError("the position in the data is damaged")
        for name in here.keys() - {"epoch", "position"}:
            if state[name] != here[name]:
                raise UserError(
                    f"the position in the data was saved with {name} = {state[name]}, here it is {here[name]}: "
                    "the data or its settings changed"
                )
        epoch, position = state["epoch"], state["position"]
        if not 0 <= epoch < 2**31:
            raise UserError("the position in the data is damaged")
        self._open(epoch, 0)
        if not 0 <= position <= self.windows or (self.rows and position % self.rows):
            self._open(here["epoch"], here["position"])
            raise UserError("the position in the data is damaged")
        self._position = position
