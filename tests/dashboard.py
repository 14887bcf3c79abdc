"""A dashboard's library that is none: it keeps what it is told."""

from __future__ import annotations

import time
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType
from typing import Any

STARTED: ContextVar[bool] = ContextVar("STARTED", default=False)
"""Whether there is a run, in the context of the thread that began it, where trackio keeps its own."""


class Dashboard(ModuleType):
    """The three functions that both libraries have.

    `calls` is what was called, with what; `file`, if any, gets a line for each call once it is done. A call of the name
    in `failing` raises, and `finish` takes `slow` seconds.
    """

    def __init__(self, name: str, file: Path | None = None, slow: float = 0.0) -> None:
        super().__init__(name)
        self.calls: list[tuple[str, Any]] = []
        self.failing, self.file, self.slow = "", file, slow

    def init(self, **settings: Any) -> None:
        """What begins a run."""
        self._do("init", settings)
        STARTED.set(True)

    def log(self, numbers: dict[str, float], step: int) -> None:
        """What shows numbers."""
        self._do("log", (step, numbers))

    def finish(self) -> None:
        """What ends a run."""
        assert STARTED.get(), "no run here"
        time.sleep(self.slow)
        self._do("finish", None)

    def _do(self, what: str, values: Any) -> None:
        print("this does not belong among the results")
        if what == self.failing:
            raise RuntimeError("the network\nis gone")
        self.calls.append((what, values))
        if self.file is not None:
            with self.file.open("a") as file:
                file.write(f"{what}\n")
