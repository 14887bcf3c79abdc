"""The failure of one rank ends the others.

A rank that raises writes its reason to torchrun's error file. Torchrun shows it and ends the other ranks, as it does
when a rank was killed. If a rank hangs, the collectives of the others time out.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from types import FrameType
from typing import NoReturn

import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors.error_handler import ErrorHandler

from jepamba.errors import UserError

REPORT_DELAY = 2.0
"""Seconds that a rank waits after it lost another, so that torchrun reports the other rank as the first to fail."""


def collective_timeout() -> timedelta:
    """How long a collective waits for a rank: JEPAMBA_COLLECTIVE_TIMEOUT seconds, 300 by default."""
    return _seconds("JEPAMBA_COLLECTIVE_TIMEOUT", 300)


def rank_zero_timeout() -> timedelta:
    """How long the ranks wait for work of rank 0: JEPAMBA_RANK_ZERO_TIMEOUT seconds, a day by default."""
    return _seconds("JEPAMBA_RANK_ZERO_TIMEOUT", 24 * 3600)


@contextlib.contextmanager
def wait_time_limit(enabled: bool) -> Iterator[None]:
    """End the process, with a traceback, if a wait for collectives in CUDA graphs takes twice `collective_timeout()`.

    PyTorch gives no time-out to the collectives in a captured CUDA graph, and a rank that waits for one runs no Python.
    """
    if enabled:
        faulthandler.dump_traceback_later(2 * collective_timeout().total_seconds(), exit=True)
    try:
        yield
    finally:
        if enabled:
            faulthandler.cancel_dump_traceback_later()


@contextlib.contextmanager
def reported_failures(world_size: int) -> Iterator[None]:
    """Report an error that is raised in this context to torchrun.

    The error is reported here because the command line later turns a `UserError` into an exit code.

    Raises:
        UserError: in place of the error of a collective, if another rank failed, was killed or hangs.
    """
    if world_size == 1:
        yield
        return
    in_main_thread = threading.current_thread() is threading.main_thread()
    previous = signal.signal(signal.SIGTERM, _terminate) if in_main_thread else None
    try:
        yield
    except Exception as error:
        lost = _is_lost_connection(error)
        if lost:
            # The rank that failed reports its reason first, so that torchrun shows that one.
            time.sleep(REPORT_DELAY)
        ErrorHandler().record_exception(error)
        if not lost:
            raise
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"another rank failed, was killed or does not answer ({first}); `jepamba resume` continues the run"
        ) from error
    finally:
        if in_main_thread:
            signal.signal(signal.SIGTERM, previous)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    """Raise `SystemExit`, so that logs are closed. Torchrun kills a rank that blocks in a collective after 30 s."""
    raise SystemExit(128 + number)


def _is_lost_connection(error: Exception) -> bool:
    """Whether a collective raised `error` because another rank is gone or late."""
    message = str(error).lower()
    return isinstance(error, RuntimeError) and (
        isinstance(error, dist.DistError) or "gloo" in message or "nccl" in message or "connection closed" in message
    )


def _seconds(name: str, default: int) -> timedelta:
    text = os.environ.get(name, str(default))
    if not text.isdecimal() or int(text) == 0:
        raise UserError(f"{name} = {text!r} in the environment: a whole number of seconds, at least 1")
    return timedelta(seconds=int(text))
