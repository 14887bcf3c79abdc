"""Processes that share a GPU take turns on it. Nothing here imports PyTorch."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator

GPU_TURN = "JEPAMBA_GPU_TURN"
"""Environment variable with the file of `gpu_turn`."""


@contextlib.contextmanager
def gpu_turn() -> Iterator[None]:
    """Wait for this process's turn on its GPU, and keep it for the block.

    Processes that share a GPU (`jepamba study run --overlap`) have the name of one file in `GPU_TURN`. One of them
    trains or scores, while the others start, pack their artifact or wait. Without that variable this does nothing.
    """
    path = os.environ.get(GPU_TURN)
    if not path:
        yield
        return
    with open(path, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
