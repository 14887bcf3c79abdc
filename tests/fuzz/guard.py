"""What a reader must not do, watched while it reads one case: crash, hang, take memory, run code, touch other files."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import resource
import sys
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jepamba.errors import UserError

from .readers import Case, Reader

SECONDS = 5.0
"""A case that takes more of the processor's time hangs. (One that only waits is ended by the parent process.)"""
FLOOR = 2 << 20
"""Bytes that every undamaged file counts as taking. A peak is measured in pages of the whole process: reading a file of
4 KB a second time takes nothing new, and the pools of allocators grow by up to a megabyte whenever they choose."""
ADDRESS_SPACE = 1 << 30
"""Bytes of addresses that a process may ask for besides those it has when it starts: more is an error at once."""

_FORBIDDEN = (
    "exec", "compile", "import", "marshal.", "pickle.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn",
    "os.startfile", "pty.", "subprocess.", "socket.", "ctypes.", "code.", "function.", "os.remove", "os.rename",
    "os.rmdir", "os.mkdir", "os.symlink", "os.link", "os.chmod", "os.truncate", "shutil.", "urllib.", "webbrowser.",
)  # fmt: skip
"""Audit events (PEP 578) by the start of their names; see `_breach` for files that are opened."""


@dataclass(frozen=True)
class End:
    """How a case ended."""

    kind: str
    """`refused`, `read`, or what was wrong: `crash`, `hang`, `memory`, `code`."""
    what: str
    """The refusal with its numbers and names taken out, or what went wrong."""
    seconds: float
    bytes: int
    """Memory at its peak, less what there was before."""
    ratio: float = 0.0
    """That, by what the undamaged file takes (at least `FLOOR`, and twice the bytes by which this file is larger: a
    sound one takes itself and what is decoded from it)."""


class Guard:
    """Runs a reader on cases in a folder of its own."""

    def __init__(self, reader: Reader, work: Path) -> None:
        self.reader, self.folder = reader, work / "case"
        self.folder.mkdir()
        self._watching = False
        self._breaches: list[str] = []
        # Every block of 64 KiB goes to the system and comes from it, so that the peak shows it.
        with contextlib.suppress(OSError, AttributeError):
            libc = ctypes.CDLL(None)
            libc.mallopt(-3, 1 << 16)
            libc.mallopt(-1, 1 << 16)
        # The first time things are imported that stay; that is not the cases' doing.
        ends = [[self._run(seed) for _ in range(3)] for seed in reader.seeds]
        if any(end.kind != "read" for runs in ends for end in runs):
            raise AssertionError(f"a sound file of {reader.name} is not read: {ends}")
        self.undamaged = [min(end.bytes for end in runs) for runs in ends]
        """Memory that each seed takes, as it is."""
        self._sizes = [sum(map(len, seed.values())) for seed in reader.seeds]
        sys.addaudithook(self._audit)
        size = int(re.search(r"VmSize:\s+(\d+)", Path("/proc/self/status").read_text())[1]) << 10  # type: ignore[index]
        resource.setrlimit(resource.RLIMIT_AS, (size + ADDRESS_SPACE, resource.RLIM_INFINITY))

    def run(self, case: Case, seed: int = 0) -> End:
        """How `case`, made from seed number `seed`, ends."""
        self._breaches.clear()
        self._watching = True
        try:
            end = self._run(case)
        finally:
            self._watching = False
        larger_by = max(0, sum(map(len, case.values())) - self._sizes[seed])
        end = replace(end, ratio=end.bytes / (max(self.undamaged[seed], FLOOR) + 2 * larger_by))
        if end.kind not in ("refused", "read"):
            return end
        if self._breaches:
            return replace(end, kind="code", what=self._breaches[0])
        if end.seconds > SECONDS:
            return replace(end, kind="hang", what=f"{end.seconds:.1f} s")
        if end.ratio > 2:
            return replace(end, kind="memory", what=f"{end.bytes:,} bytes, undamaged {self.undamaged[seed]:,}")
        return end

    def put(self, case: Case) -> None:
        """Make the folder hold exactly the files of `case`."""
        for name in set(os.listdir(self.folder)) - case.keys():
            os.unlink(self.folder / name)
        for name, content in case.items():
            (self.folder / name).write_bytes(content)

    def _run(self, case: Case) -> End:
        watching, self._watching = self._watching, False
        self.put(case)
        before = _reset_peak()
        self._watching = watching
        started = time.process_time()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                self.reader.read(self.folder)
            kind, what = "read", ""
        except UserError as error:
            kind, what = "refused", _class(str(error), self.folder)
            if "\n" in str(error):
                kind, what = "crash", f"a refusal of more than one line: {what}"
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            kind, what = "crash", f"{type(error).__name__}: {_class(str(error), self.folder)}"
        seconds = time.process_time() - started
        self._watching = False
        return End(kind, what, seconds, max(0, _peak() - before))

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        if self._watching and (event.startswith(_FORBIDDEN) or (event == "open" and self._breach(args))):
            self._breaches.append(f"{event} {str(args)[:100]}")

    def _breach(self, args: tuple[Any, ...]) -> bool:
        """Whether a file is opened to be written, or lies elsewhere."""
        path, mode, flags = args
        writes = bool(set(mode or "") & set("wax+")) or bool((flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        return writes or (not isinstance(path, int) and not str(path).startswith(str(self.folder)))


def _class(message: str, folder: Path) -> str:
    """A message without what differs from case to case, so that alike ones can be counted."""
    message = " ".join(message.replace(str(folder), "").split())
    return re.sub(r"'[^']*'|\"[^\"]*\"|-?\d[\d.,e+]*|\b[0-9a-f]{8,}\b", "…", message)[:120]


def _reset_peak() -> int:
    """Set the process's peak of memory to what it takes now; that, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    # Not getrusage's maximum: that starts with what the parent had when it started this process.
    status = Path("/proc/self/status").read_bytes()
    return int(status.partition(b"VmHWM:")[2].split(None, 1)[0]) << 10
