"""Processes that share a GPU take turns on it. Nothing here imports PyTorch."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from typing import BinaryIO

GPU_TURN = "JEPAMBA_GPU_TURN"
"""Environment variable with the file of `gpu_turn`."""


_held: BinaryIO | None = None


@contextlib.contextmanager
def gpu_turn(*, begins: bool = False) -> Iterator[None]:
    """Wait for this process's turn on its GPU, and keep it for the block.

    Processes that share a GPU (`jepamba study run --overlap`) have the name of one file in `GPU_TURN`. One of them
    trains or scores, while the others start, pack their artifact or wait. Without that variable this does nothing.

    Arguments: `begins`: this is the first turn of a run. One such process waits for the GPU at a time, and the others
    behind it, so that runs end early which have begun early.
    """
    global _held
    path = os.environ.get(GPU_TURN)
    if not path:
        yield
        return
    with open(path, "ab") as file, open(f"{path}-first", "ab") as door:
        if begins:
            fcntl.flock(door, fcntl.LOCK_EX)
        fcntl.flock(file, fcntl.LOCK_EX)
        fcntl.flock(door, fcntl.LOCK_UN)
        _held = file
        try:
            yield
        finally:
            _held = None


@contextlib.contextmanager
def without_gpu_turn() -> Iterator[None]:
    """Give up this process's turn for the block, if it has one, and wait for the next after it."""
    if _held is None:
        yield
        return
    fcntl.flock(_held, fcntl.LOCK_UN)
    try:
        yield
    finally:
        fcntl.flock(_held, fcntl.LOCK_EX)
