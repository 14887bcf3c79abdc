"""How the windows of a step are dealt to micro-batches and ranks: as evenly as can be, and in the loader's order.

The windows of a step, and so its losses up to rounding, do not depend on how many ranks there are. A *pass* is what all
ranks do at once, a micro-batch each; every rank has the same number of them, for what ranks sum within a pass.
"""

from __future__ import annotations

from dataclasses import dataclass

from jepamba.errors import UserError


@dataclass(frozen=True)
class BatchLayout:
    """`windows` of a step, in `passes` of `ranks` micro-batches each, whose sizes differ by one at most.

    Passes of as many windows are dealt alike, and there are two sizes of passes at most: ranks that record a pass as a
    CUDA graph, with their sums in it, then do so together.
    """

    windows: int
    passes: int
    ranks: int = 1

    @classmethod
    def of(cls, windows: int, most: int, ranks: int) -> BatchLayout:
        """As few passes as give a rank `most` windows of one at most (where `most` is 1, it can be two: no rank is
        without one). Raises `UserError` for more ranks than windows."""
        if ranks > windows:
            raise UserError(
                f"{ranks} processes, but a step has {windows} windows (train.tokens_per_step / data.seq_len) and each "
                "process needs one: start fewer processes, or raise train.tokens_per_step"
            )
        return cls(windows, min(-(-windows // (most * ranks)), windows // ranks), ranks)

    def rows(self, index: int, rank: int) -> range:
        """Which of the step's windows `rank` has in pass `index`."""
        start, end = (place * self.windows // self.passes for place in (index, index + 1))
        each, more = divmod(end - start, self.ranks)
        start += rank * each + min(rank, more)
        return range(start, start + each + (rank < more))

    def of_rank(self, rank: int) -> list[range]:
        """What `rank` has in each pass."""
        return [self.rows(index, rank) for index in range(self.passes)]

    def of_pass(self, index: int) -> list[range]:
        """What each rank has in pass `index`."""
        return [self.rows(index, rank) for rank in range(self.ranks)]
