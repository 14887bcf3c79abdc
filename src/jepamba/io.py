"""Atomic writes, and bounded reads of untrusted files."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import stat
import sys
import time
from contextlib import suppress
from io import BufferedReader
from pathlib import Path

from jepamba.errors import UserError

PIPE_SECONDS = 5.0
"""Time that a named pipe has to get a reader."""


def atomic_write(path: Path, *parts: bytes) -> None:
    """Write the concatenation of `parts` to `path` atomically: a reader sees either the old or the new content.

    The content is on disk when this returns. Missing folders are created. A new file gets its permissions from the
    umask; a replaced file keeps its permissions and, as far as this user may, its owner. A symbolic link is followed. A
    device, a pipe and `/dev/stdout` cannot be replaced and are written directly. Raises `OSError`, which names `path`,
    and leaves the old file unchanged and no other file; `UserError` for a pipe that nobody opens to read.
    """
    try:
        try:
            status = path.stat()
        except FileNotFoundError:
            status = None
        target, ours = path, Path("/proc/self/fd").resolve()
        while target.is_symlink() and target.parent.resolve() != ours:
            target = target.parent / target.readlink()
        if target.is_symlink():
            # For example /dev/stdout. Opening it by name would overwrite a redirected file from its start.
            _write(os.dup(int(target.name)), parts)
        elif status is not None and not stat.S_ISREG(status.st_mode):
            _write(_open_special(target), parts)
        else:
            _replace(target, parts, status)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _open_special(path: Path) -> int:
    """Open a device or a pipe for writing. A pipe needs a reader, which is waited for, but not forever."""
    deadline = time.monotonic() + PIPE_SECONDS
    while True:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            if time.monotonic() > deadline:
                raise UserError(f"{path}: nobody reads from this pipe; start its reader first") from None
            time.sleep(0.01)
        else:
            os.set_blocking(descriptor, True)
            return descriptor


def _replace(path: Path, parts: tuple[bytes, ...], before: os.stat_result | None) -> None:
    """Write a new file in the folder of `path`, with owner and permissions of the one `before`, and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    building = path.with_name(f".{secrets.token_hex(8)}.partial")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    descriptor = os.open(building, flags, 0o666 if before is None else before.st_mode & 0o666)
    try:
        if before is not None:
            with suppress(OSError):  # only root may give a file away
                os.chown(building, before.st_uid, before.st_gid)
            os.chmod(building, stat.S_IMODE(before.st_mode))
        _write(descriptor, parts, sync=True)
        building.replace(path)
    except BaseException:
        building.unlink(missing_ok=True)
        raise
    with suppress(OSError):  # not every file system can sync a folder
        sync(path.parent)


def _write(descriptor: int, parts: tuple[bytes, ...], sync: bool = False) -> None:
    with os.fdopen(descriptor, "wb") as file:
        for part in parts:
            file.write(part)
        if sync:
            file.flush()
            os.fsync(descriptor)


def resolved(path: Path) -> Path:
    """Return the absolute path without links. Raises `UserError` for links in a loop or a name with a NUL."""
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # Python before 3.13 raises a RuntimeError for a loop
        raise UserError(f"{str(path)!r}: {error}; choose another path") from None


def make_private_folder(path: Path) -> None:
    """Create `path` and its missing parents for this user alone. A folder that exists keeps its permissions.

    Raises `UserError` if it cannot be created.
    """
    try:
        for folder in reversed([path, *path.parents]):
            if not folder.exists():
                folder.mkdir(mode=0o700, exist_ok=True)
    except (OSError, ValueError) as error:  # a ValueError for a NUL in the name
        raise unwritable(path, error) from None


def unwritable(path: Path, error: Exception) -> UserError:
    """Return the error for the output `path`, which the operating system refused with `error`."""
    return UserError(f"{path}: cannot be written ({getattr(error, 'strerror', None) or error}); choose another output")


def make_private_again(folder: Path) -> bool:
    """Close `folder` to others if it, with all that is in it, is this user's. Returns whether it was open.

    A folder in which others have files is shared on purpose, and a link leads to a place that somebody chose.
    """
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or not status.st_mode & 0o077:
        return False
    with os.scandir(folder) as entries:
        owners = {status.st_uid, *(entry.stat(follow_symlinks=False).st_uid for entry in entries)}
    if owners == {os.geteuid()}:
        with suppress(OSError):  # not every file system has permissions
            folder.chmod(stat.S_IMODE(status.st_mode) & ~0o077)
            return True
    return False


def check_writable(path: Path) -> None:
    """Raise `UserError` if `atomic_write` to `path` would fail, as far as can be known before there is content."""
    try:
        place = resolved(path)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if path.exists() and not path.is_file():
            return
        _probe(place.parent)
    except OSError as error:
        raise unwritable(path, error) from None


def check_writable_folder(path: Path) -> None:
    """Raise `UserError` if no file can be written into the folder `path`, which need not exist yet."""
    try:
        if path.exists() and not path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        _probe(resolved(path))
    except OSError as error:
        raise unwritable(path, error) from None


def _probe(folder: Path) -> None:
    """Raise `OSError` if no file can be made in `folder`, or where its first missing part would be made."""
    while not folder.exists():
        folder = folder.parent
    # Permissions alone do not tell: the file system may be read-only, or the user root.
    probe = folder / f".{secrets.token_hex(8)}.partial"
    probe.touch(exist_ok=False)
    probe.unlink()


def check_utf8_name(path: Path) -> None:
    """Raise `UserError` if the name `path` is not UTF-8: safetensors and TOML cannot have it."""
    if reason := not_utf8(str(path)):
        raise UserError(f"{path}: this name {reason}; rename it, or choose another")


def not_utf8(text: str) -> str:
    """Return why `text` has no UTF-8 form, in words, or an empty text. A name that is not UTF-8 has none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        encoding = sys.getfilesystemencoding()
        return "is not UTF-8" if encoding == "utf-8" else f"was read as {encoding}, not as UTF-8 (set PYTHONUTF8=1)"
    return ""


def sync(path: Path) -> None:
    """Flush the file or folder `path` to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_untrusted(path: Path, what: str, limit: int | None = None) -> BufferedReader:
    """Open `path` for reading. Error messages call it `what` (for example "the artifact").

    Raises `UserError`, which names the file, if it cannot be read, is not a regular file, or exceeds `limit` bytes.
    """
    try:
        # Non-blocking: opening a named pipe must not wait for a writer.
        number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:  # a ValueError for a NUL in the name
        raise UserError(f"{path}: cannot read {what} ({getattr(error, 'strerror', None) or error})") from error
    status = os.fstat(number)
    if stat.S_ISREG(status.st_mode) and (limit is None or status.st_size <= limit):
        return os.fdopen(number, "rb")
    os.close(number)
    if limit is None or status.st_size <= limit:
        raise UserError(f"{path}: cannot be {what}: it is not a regular file")
    raise UserError(f"{path}: cannot be {what}: {status.st_size:,} bytes, the format allows {limit:,}")


def read_untrusted(path: Path, what: str, limit: int) -> bytes:
    """Return the bytes of `path`; see `open_untrusted`."""
    with open_untrusted(path, what, limit) as file:
        try:
            return file.read()
        except OSError as error:
            raise UserError(f"{path}: cannot read {what} ({error.strerror})") from error


def sha256_of(path: Path, what: str) -> str:
    """Return the sha256 of `path` in hexadecimal; see `open_untrusted`."""
    with open_untrusted(path, what) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
