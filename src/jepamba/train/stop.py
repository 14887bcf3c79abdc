"""Stop a run on Ctrl-C, SIGTERM or SIGHUP between steps, so that no step is lost."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, NoReturn

from jepamba.errors import SIGNALS


class StopRequest:
    """A context in which the first of `SIGNALS` only sets `signal`. A second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        # Python allows signal handlers only in the main thread.
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                # `nohup` ignores SIGHUP.
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
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


def leave(stop_signal: signal.Signals) -> NoReturn:
    """Raise `KeyboardInterrupt` for SIGINT, or `SystemExit(128 + number)` for another signal."""
    if stop_signal == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + stop_signal)
