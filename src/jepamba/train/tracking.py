"""Send a run's metrics to a dashboard, trackio or wandb, in addition to metrics.jsonl.

Both libraries have the same three functions. A dashboard that fails is dropped with one line; the run continues.
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
"""The file in a run's folder with the run's id on the dashboard, so that a resumed run continues there."""
CLOSE_TIMEOUT = 4.0
"""Seconds that a dashboard has to send its last records after an error or a signal. It is below the time that a rank
has to end after another rank failed."""
_GROUPS = {"step": "train", "val": "val", "terms": "terms"}


class Tracker:
    """Sends numbers to `library`, from the first record to `finish`.

    Arguments:
        library: "trackio" or "wandb".
        out: the run's folder; the run is named after it.
        settings: the settings to show beside the curves.

    Raises:
        UserError: if the library is not installed, or, at the first record, if it does not start.
    """

    def __init__(self, library: str, out: Path, settings: Mapping[str, Any]) -> None:
        self.library, self.out, self.settings = library, out, dict(settings)
        self._module: ModuleType | None = _imported(library)
        self._started = False

    def log(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Send the numbers of one record of metrics.jsonl, as `train/ce` or `val/bpb`. Events are not sent."""
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
        """Finish the dashboard's run, once. With `within`, wait at most that many seconds for it."""
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
                # A daemon, so that it cannot keep the process alive. In this context, where trackio stores its run.
                thread = Thread(target=copy_context().run, args=(work,), name="dashboard", daemon=True)
                thread.start()
                thread.join(within)
                if thread.is_alive():
                    problems.append(TimeoutError(f"records that it did not send within {within:g} s may be lost"))
        for problem in problems:
            self._give_up(problem)

    def _start(self, module: ModuleType) -> None:
        identity = self._identity()
        extra = {"id": identity, "dir": str(self.out)} if self.library == "wandb" else {}
        name = f"{self.out.resolve().name}-{identity}"
        try:
            # Standard output is for results, so their messages go to standard error.
            with contextlib.redirect_stdout(sys.stderr):
                module.init(project=PROJECT, name=name, config=self.settings, resume="allow", **extra)
        except Exception as error:
            raise UserError(f"train.track = {self.library!r}: {self.library} does not start: {_line(error)}") from error
        self._started = True

    def _identity(self) -> str:
        """This run's id of eight hexadecimal digits, which a resumed run keeps."""
        file = self.out / IDENTITY
        with contextlib.suppress(OSError, UnicodeDecodeError):
            found = file.read_text(encoding="utf-8").strip()
            if len(found) == 8 and found.isalnum() and found.isascii():
                return found
        identity = secrets.token_hex(4)
        file.write_text(identity + "\n", encoding="utf-8")
        return identity

    def _give_up(self, error: Exception) -> None:
        print(f"jepamba: {self.library} failed and gets no more records: {_line(error)}", file=sys.stderr)
        self._module = None


def track(run: Run, out: Path) -> Tracker | None:
    """The tracker that `train.track` names, if any. Raises `UserError` if its library is not installed."""
    return Tracker(run.train.track, out, to_dict(run)) if run.train.track else None


def check_tracker(run: Run) -> None:
    """Raise `UserError` if the library that `train.track` names is not installed."""
    if run.train.track:
        _imported(run.train.track)


def _imported(library: str) -> ModuleType:
    try:
        with contextlib.redirect_stdout(sys.stderr):
            module = importlib.import_module(library)
        # wandb leaves a folder of its name in the working directory, which Python imports as an empty package.
        module.init  # noqa: B018
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"train.track = {library!r}: {library} is not installed, or broken ({_line(error)}); "
            f"`pip install '.[{library}]'` in a checkout installs it"
        ) from error
    return module


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
