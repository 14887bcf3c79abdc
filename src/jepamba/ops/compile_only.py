"""Compiles the Triton kernels of some work at once, before the work itself needs them one after the other."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import Any

import torch

from jepamba.ops.compile_tasks import CompileTasks


def can_compile_ahead() -> bool:
    """Whether Triton compiles its kernels, and does not interpret them."""
    import triton

    return not triton.knobs.runtime.interpret


@contextlib.contextmanager
def compile_only(processes: int = 1) -> Iterator[None]:
    """A context in which the launches of Triton kernels by this thread do not run them; its exit compiles them.

    The arguments are those of the real launch, and so is the compiled variant. The outputs of the kernels keep what is
    in their memory, so every result is arbitrary, NaN included: the work must change nothing that matters, and must not
    use a result as an index. A kernel that cannot be compiled raises its error at its real launch.

    Arguments: `processes`: how many processes of this machine do this at the same time.
    """
    import triton
    from triton.runtime.jit import JITFunction

    run, thread = JITFunction.run, threading.get_ident()

    def compiled(kernel: Any, *args: Any, grid: Any, warmup: bool, **settings: Any) -> Any:
        return run(kernel, *args, grid=grid, warmup=warmup or threading.get_ident() == thread, **settings)

    tasks = CompileTasks(build_launcher)
    with triton.AsyncCompileMode(tasks, ignore_errors=True):
        JITFunction.run = compiled
        try:
            # Backward passes run on this thread too, because Triton's mode is a property of the thread.
            with torch.autograd.set_multithreading_enabled(False):
                yield
        finally:
            JITFunction.run = run
            tasks.run(len(os.sched_getaffinity(0)) // processes)


def build_launcher(kernel: Any) -> None:
    """Compile the function in C that launches `kernel`. Triton 3.6 has one for each signature and compiles it at the
    first launch; later versions have one for all kernels.
    """
    import triton

    triton.runtime.driver.active.launcher_cls(kernel.src, kernel.metadata)
