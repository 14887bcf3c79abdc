"""Faults that are prepared inside a process before its run begins; see `Running`'s `setup`."""

from __future__ import annotations

import os
import time
from typing import Any

from jepamba import lookout
from jepamba.data import Ahead
from jepamba.errors import UserError


def impatient() -> None:
    """A lookout that waits two seconds where it would wait thirty."""
    lookout.SILENCE, lookout.GRACE, lookout.EVERY = 2.0, 1.0, 0.2


def bad_disk_on_rank_1() -> None:
    """The fifth read of data fails, on rank 1 alone."""
    take, reads = Ahead.next, []

    def failing(self: Any, *arguments: Any) -> Any:
        reads.append(1)
        if len(reads) == 5 and os.environ["RANK"] == "1":
            raise UserError("/data/text_train_000003.bin: the shard can no longer be read (Input/output error)")
        return take(self, *arguments)

    Ahead.next = failing  # type: ignore[method-assign]


def fast_clock_on_rank_1() -> None:
    """Time passes a hundred times faster on rank 1."""
    if os.environ["RANK"] == "1":
        honest = time.perf_counter
        time.perf_counter = lambda: 100 * honest()


def folder_of_its_own() -> None:
    """Each rank in the folder of its number in FOLDERS, as if on a machine of its own."""
    os.chdir(os.path.join(os.environ["FOLDERS"], os.environ["RANK"]))
