"""Opening a file that a stranger may have made: an ordinary one, and no larger than is allowed."""

from __future__ import annotations

import hashlib
import os
import stat
from io import BufferedReader
from pathlib import Path

from jepamba.errors import UserError


def open_untrusted(path: Path, what: str, limit: int | None = None) -> BufferedReader:
    """`path`, which is meant to be `what` ("the artifact"), open for reading.

    Raises `UserError` naming the file if it cannot be read, is a folder, a pipe or a device, or has more than `limit`
    bytes.
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
        raise UserError(f"{path}: cannot be {what}: it is no ordinary file")
    raise UserError(f"{path}: cannot be {what}: {status.st_size:,} bytes, the format allows {limit:,}")


def read_untrusted(path: Path, what: str, limit: int) -> bytes:
    """The bytes of `path`; as `open_untrusted`."""
    with open_untrusted(path, what, limit) as file:
        try:
            return file.read()
        except OSError as error:
            raise UserError(f"{path}: cannot read {what} ({error.strerror})") from error


def sha256_of(path: Path, what: str) -> str:
    """The sha256 of `path`'s bytes, in hexadecimal digits; as `open_untrusted`."""
    with open_untrusted(path, what) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
