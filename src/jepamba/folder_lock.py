"""One writer per folder. The operating system releases the lock when the process ends, however it ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from io import BufferedWriter
from itertools import count
from pathlib import Path

from jepamba.errors import UserError
from jepamba.io import resolved, unwritable


class _BusyError(UserError):
    """Another process writes to the folder."""


LOCK = ".lock"
"""The file that the writer of a folder holds locked. A left-over file without a process locks nothing."""

_held: set[Path] = set()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Be the only process that writes to `folder`, which is created if missing.

    A process that holds the lock may enter it again. A folder that is created here and stays empty is removed.
    Raises: `UserError` if another process holds the lock, or if the folder cannot be made or written.
    """
    path = resolved(folder) / LOCK
    if path in _held:
        yield
        return
    is_new = not os.path.exists(folder)
    with _open_locked(path, folder):
        _held.add(path)
        try:
            yield
        finally:
            _held.remove(path)
            with suppress(OSError):
                path.unlink()
                if is_new:
                    path.parent.rmdir()


@contextmanager
def unused_folder(path: Path) -> Iterator[Path]:
    """Lock and yield `path`, or if it exists, the first of `path-2`, `path-3` and so on that does not.

    Under torchrun only rank 0 has a folder; the other ranks get `path`.
    """
    if os.environ.get("RANK", "0") != "0":
        yield path
        return
    with ExitStack() as stack:
        for number in count(1):
            folder = path if number == 1 else path.with_name(f"{path.name}-{number}")
            if not folder.exists():
                with suppress(_BusyError):  # another process was faster
                    stack.enter_context(locked(folder))
                    break
        yield folder


def _open_locked(path: Path, folder: Path) -> BufferedWriter:
    """Open `path` and lock it. Raises as `locked` does."""
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("ab")
        except OSError as error:
            raise unwritable(folder, error) from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise _BusyError(f"{folder}: another process writes to it; wait for it, or choose another folder") from None
        except OSError:
            return file  # a file system without locks
        # The process that held the lock before may have removed the file after it was opened here.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()
