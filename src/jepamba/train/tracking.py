"""A run's metrics for a dashboard, beside metrics.jsonl: trackio or wandb, which share three functions.

The file is the record of the run; a dashboard that fails is given up with one line, and the run goes on.
"""

from __future__ import annotations

import contextlib
import importlib
import secrets
import sys
from collections.abc import Mapping
from contextvars import copy_context
from pathlib import Path
from threading import Thread
from types import ModuleType
from typing import Any

from jepamba.config import Run, to_dict
from jepamba.errors import UserError

PROJECT = "jepamba"
IDENTITY = "tracking"
"""The file in a run's folder that names the run for the dashboard, so that a resumed run goes on there."""
HURRY = 4.0
"""Seconds that a dashboard has for what it has not sent yet, where something other than the budget ends the run: less
than ranks have to end once another is gone."""
_GROUPS = {"step": "train", "val": "val", "terms": "terms"}


class Tracker:
    """Passes numbers on to `library`, from its first record to `finish`.

    Arguments: `out`, the run's folder, which gives the run its name; `settings`, shown beside the curves. Raises
    `UserError`: at once if the library is not installed, at the first record if it refuses to start.
    """

    def __init__(self, library: str, out: Path, settings: Mapping[str, Any]) -> None:
        self.library, self.out, self.settings = library, out, dict(settings)
        self._module: ModuleType | None = _imported(library)
        self._started = False

    def log(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Pass on the numbers of one record of metrics.jsonl as `train/ce`, `val/bpb` and so on, but for events."""
        if kind not in _GROUPS or self._module is None:
            return
        if not self._started:
            self._start(self._module)
        numbers = {f"{_GROUPS[kind]}/{name}": value for name, value in values.items() if type(value) in (int, float)}
        try:
            with contextlib.redirect_stdout(sys.stderr):
                self._module.log(numbers, step=step)
        except Exception as error:
            self._give_up(error)

    def finish(self, within: float | None = None) -> None:
        """The run is over; at a second call nothing. With `within`, wait so many seconds for it at most."""
        module, self._module = self._module, None
        if module is None or not self._started:
            return
        problems: list[Exception] = []

        def work() -> None:
            try:
                module.finish()
            except Exception as error:
                problems.append(error)

        with contextlib.redirect_stdout(sys.stderr):
            if within is None:
                work()
            else:
                # A daemon: the process may end under it. In this thread's context: trackio keeps its run there.
                thread = Thread(target=copy_context().run, args=(work,), name="dashboard", daemon=True)
                thread.start()
                thread.join(within)
                if thread.is_alive():
                    problems.append(TimeoutError(f"what it has not sent within {within:g} s may be lost"))
        for problem in problems:
            self._give_up(problem)

    def _start(self, module: ModuleType) -> None:
        identity = self._identity()
        more = {"id": identity, "dir": str(self.out)} if self.library == "wandb" else {}
        name = f"{self.out.resolve().name}-{identity}"
        try:
            # What they say belongs beside the results, not among them.
            with contextlib.redirect_stdout(sys.stderr):
                module.init(project=PROJECT, name=name, config=self.settings, resume="allow", **more)
        except Exception as error:
            raise UserError(f"train.track = {self.library!r}: it does not start: {_line(error)}") from error
        self._started = True

    def _identity(self) -> str:
        """Eight digits that this run, resumed or not, has for its own."""
        file = self.out / IDENTITY
        with contextlib.suppress(OSError, UnicodeDecodeError):
            found = file.read_text(encoding="utf-8").strip()
            if len(found) == 8 and found.isalnum() and found.isascii():
                return found
        identity = secrets.token_hex(4)
        file.write_text(identity + "\n", encoding="utf-8")
        return identity

    def _give_up(self, error: Exception) -> None:
        print(f"jepamba: {self.library} failed and is left alone from here on: {_line(error)}", file=sys.stderr)
        self._module = None


def track(run: Run, out: Path) -> Tracker | None:
    """What `train.track` asks for. Raises `UserError` if the library is not installed."""
    return Tracker(run.train.track, out, to_dict(run)) if run.train.track else None


def _imported(library: str) -> ModuleType:
    try:
        with contextlib.redirect_stdout(sys.stderr):
            module = importlib.import_module(library)
        # A folder of the same name, which wandb leaves behind wherever it ran, passes for a package without content.
        module.init  # noqa: B018
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"train.track = {library!r}: {library} is not installed, or broken ({_line(error)}); "
            f"`pip install 'jepamba[{library}]'` installs it"
        ) from error
    return module


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
