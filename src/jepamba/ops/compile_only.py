"""Compiles the Triton kernels of some work in parallel, before the work itself needs them one after the other."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

MAX_THREADS = 16
"""More would wait for each other: the first part of a compilation is Python."""

_enabled = True


@contextlib.contextmanager
def compile_ahead(enabled: bool) -> Iterator[None]:
    """A context that enables or disables parallel compilation. Disabled, each kernel is compiled at its first launch."""
    global _enabled
    previous, _enabled = _enabled, enabled
    try:
        yield
    finally:
        _enabled = previous


def can_compile_ahead() -> bool:
    """Whether this Triton can compile in threads (3.6 can), and its kernels are compiled, not interpreted."""
    if not _enabled:
        return False
    import triton

    return hasattr(triton, "AsyncCompileMode") and not triton.knobs.runtime.interpret


@contextlib.contextmanager
def compile_only(processes: int = 1) -> Iterator[None]:
    """A context in which a launch of a Triton kernel by this thread compiles it, in another thread, and does not run it.

    The arguments are those of the real launch, and so is the compiled variant. The outputs of the kernels keep what is
    in their memory, so every result is arbitrary, NaN included: the work must change nothing that matters, and must not
    use a result as an index. The exit waits for all compilations and raises the error of one that fails. Backward
    passes run on this thread too, because Triton's mode is a property of the thread.

    Arguments: `processes`: how many processes of this machine do this at the same time.
    """
    import triton
    from triton.runtime.jit import JITFunction

    run, thread = JITFunction.run, threading.get_ident()

    def compiled(kernel: Any, *args: Any, grid: Any, warmup: bool, **settings: Any) -> Any:
        return run(kernel, *args, grid=grid, warmup=warmup or threading.get_ident() == thread, **settings)

    count = max(1, min(MAX_THREADS, len(os.sched_getaffinity(0)) // processes))
    with ThreadPoolExecutor(count, "triton") as pool, triton.AsyncCompileMode(pool):
        JITFunction.run = compiled
        try:
            with torch.autograd.set_multithreading_enabled(False):
                yield
        finally:
            JITFunction.run = run
