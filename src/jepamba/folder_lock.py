"""One writer per folder, and folders of unfinished work. A lock ends with its process, however that ends."""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import secrets
import shutil
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
_PARTIAL = ".partial"


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


@contextmanager
def work_folder(parent: Path, name: str) -> Iterator[Path]:
    """Make a hidden folder in `parent` for what becomes `name`, and remove it at the end unless it was renamed.

    It has the permissions that the umask leaves. Those that killed processes of this machine left for `name` are
    removed; those of living processes are locked. Raises: `OSError` if it cannot be made.
    """
    # The locks of another machine may not be visible here. A name has at most 255 bytes.
    prefix = f".{name[:40]}.{hashlib.sha256(platform.node().encode()).hexdigest()[:8]}"
    parent.mkdir(parents=True, exist_ok=True)
    for stale in parent.iterdir():
        if stale.name.startswith(prefix) and stale.name.endswith(_PARTIAL):
            with _locked_folder(stale) as is_ours:
                if is_ours:
                    shutil.rmtree(stale, ignore_errors=True)
    while True:
        folder = parent / f"{prefix}{secrets.token_hex(8)}{_PARTIAL}"
        folder.mkdir()
        with _locked_folder(folder) as is_ours:
            if is_ours is False or not folder.exists():
                continue  # another process took it for one of a killed process, before it was locked
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            return


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Make a `work_folder` that becomes `out`, or what the link `out` leads to, at the end.

    Raises: `UserError` if another process has made `out` meanwhile.
    """
    place = resolved(out)
    with work_folder(place.parent, place.name) as folder:
        yield folder
        try:
            folder.rename(place)
        except OSError as error:
            raise UserError(f"{out}: {error.strerror}; choose another folder") from None


@contextmanager
def _locked_folder(folder: Path) -> Iterator[bool | None]:
    """Lock `folder` itself. Yields whether this process has the lock, or None on a file system without locks."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        yield False
        return
    try:
        yield _lock(descriptor)
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool | None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _open_locked(path: Path, folder: Path) -> BufferedWriter:
    """Open `path` and lock it. Raises as `locked` does."""
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("ab")
        except OSError as error:
            raise unwritable(folder, error) from None
        is_ours = _lock(file.fileno())
        if is_ours is False:
            file.close()
            raise _BusyError(f"{folder}: another process writes to it; wait for it, or choose another folder")
        if is_ours is None:
            return file  # a file system without locks
        # The process that held the lock before may have removed the file after it was opened here.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()
