"""Python's garbage collector beside CUDA: what it frees at a bad moment breaks a capture, or a fork of the process."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Suspend the garbage collector. Processes that are forked meanwhile keep it off.

    It would destroy earlier CUDA graphs, which invalidates a capture (https://github.com/pytorch/pytorch/pull/161037),
    and in a fork graphs and tensors of the parent, which aborts the fork.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
