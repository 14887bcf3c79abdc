"""Assigns the windows of a step to micro-batches and ranks, evenly and in the loader's order.

The windows of a step do not depend on the number of ranks, so the losses are equal up to rounding. In a *pass*, each
rank processes one micro-batch. All ranks have the same number of passes, because some sums go across ranks in a pass.
"""

from __future__ import annotations

from dataclasses import dataclass

from jepamba.errors import UserError


@dataclass(frozen=True)
class BatchLayout:
    """Splits the `windows` of a step into `passes` of `ranks` micro-batches, whose sizes differ by at most one.

    Passes with the same number of windows have the same micro-batch sizes, and at most two sizes of passes exist. So
    all ranks capture a new CUDA graph, which contains collectives, in the same pass.
    """

    windows: int
    passes: int
    ranks: int = 1

    @classmethod
    def of(cls, windows: int, max_rows: int, ranks: int) -> BatchLayout:
        """Return the layout with the fewest passes whose micro-batches have at most `max_rows` windows.

        No micro-batch is empty, so one can have two windows if `max_rows` is 1. Raises `UserError` for more ranks than
        windows.
        """
        if ranks > windows:
            raise UserError(
                f"{ranks} processes, but a step has {windows} windows (train.tokens_per_step / data.seq_len) and each "
                "process needs one: start fewer processes, or raise train.tokens_per_step"
            )
        return cls(windows, min(-(-windows // (max_rows * ranks)), windows // ranks), ranks)

    def rows(self, index: int, rank: int) -> range:
        """Return the windows of `rank` in pass `index`, as indices within the step."""
        start, end = (i * self.windows // self.passes for i in (index, index + 1))
        each, remainder = divmod(end - start, self.ranks)
        start += rank * each + min(rank, remainder)
        return range(start, start + each + (rank < remainder))

    def of_rank(self, rank: int) -> list[range]:
        """Return the windows of `rank` in each pass."""
        return [self.rows(index, rank) for index in range(self.passes)]

    def of_pass(self, index: int) -> list[range]:
        """Return the windows of each rank in pass `index`."""
        return [self.rows(index, rank) for rank in range(self.ranks)]
