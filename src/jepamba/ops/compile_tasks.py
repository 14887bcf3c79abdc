"""Runs compilations in forks of this process, whose results it then loads from Triton's cache.

Threads would not do: a third of a compilation is Python, which runs in one thread at a time.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from multiprocessing.process import BaseProcess
from typing import Any

from jepamba.ops.garbage import no_garbage_collection

CACHE_HIT = 0.05
"""Seconds that loading a kernel from Triton's cache takes at most. A compilation takes longer."""
TIME_LIMIT = 120.0
"""Seconds after which a process that still compiles is given up."""


class CompileTasks(Executor):
    """Keeps what is submitted, and runs it with `run`.

    Arguments: `after`: what a fork also does with each result, for what it leaves in Triton's cache.
    """

    def __init__(self, after: Callable[[Any], object]) -> None:
        self.after = after
        self.waiting = list[tuple[Future[Any], Callable[[], Any]]]()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.waiting.append((Future(), lambda: fn(*args, **kwargs)))
        return self.waiting[-1][0]

    def run(self, workers: int) -> None:
        """Run all tasks in order. From the first on that takes as long as a compilation, `workers` processes run them
        before, so that this process finds the results in Triton's cache.
        """
        forked = workers < 2 or multiprocessing.current_process().daemon
        for index, (future, task) in enumerate(self.waiting):
            started = time.perf_counter()
            try:
                future.set_result(task())
            except Exception as error:
                future.set_exception(error)
            if not forked and time.perf_counter() - started > CACHE_HIT:
                forked = True
                _run_in_processes([partial(self._compile, task) for _, task in self.waiting[index + 1 :]], workers)

    def _compile(self, task: Callable[[], Any]) -> None:
        self.after(task())


def _run_in_processes(tasks: list[Callable[[], Any]], workers: int) -> None:
    """Run `tasks` in forks of this process, which must not use the GPU. Results and errors are dropped."""
    context = multiprocessing.get_context("fork")
    following = context.Value("i", 0)

    def work() -> None:
        # Ctrl-C is for the parent, which may have handlers that only take a note.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        while True:
            with following.get_lock():
                index, following.value = following.value, following.value + 1
            if index >= len(tasks):
                return
            with contextlib.suppress(Exception):
                tasks[index]()

    started = list[BaseProcess]()
    # Without memory for a fork, this process compiles alone.
    with warnings.catch_warnings(), contextlib.suppress(OSError), no_garbage_collection():
        # Python 3.12 warns of forks beside threads. Those of this process hold no lock that a compilation takes.
        warnings.simplefilter("ignore", DeprecationWarning)
        for _ in range(min(workers, len(tasks))):
            process: BaseProcess = context.Process(target=work, daemon=True)
            process.start()
            started.append(process)
    deadline = time.monotonic() + TIME_LIMIT
    for process in started:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()
