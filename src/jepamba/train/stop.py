"""Stopping a run from outside without losing a step: Ctrl-C and SIGTERM are answered between steps."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, NoReturn


class StopRequest:
    """While entered, the first SIGINT or SIGTERM only sets `signal`; a second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        # Only the main thread may handle signals; elsewhere the caller's own handling stays.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)


def leave(asked: signal.Signals) -> NoReturn:
    """Leave for the signal that came: by `KeyboardInterrupt` (SIGINT) or `SystemExit(143)` (SIGTERM)."""
    if asked != signal.SIGTERM:
        raise KeyboardInterrupt
    raise SystemExit(128 + asked)
