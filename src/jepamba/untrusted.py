"""Reading a file that a stranger may have made: an ordinary one, and no larger than is allowed."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from jepamba.errors import UserError


def read_untrusted(path: Path, limit: int, what: str) -> bytes:
    """The bytes of `path`, which is meant to be `what` ("the artifact").

    Raises `UserError` naming the file if it cannot be read, is a folder, a pipe or a device, or has more than `limit`
    bytes.
    """
    try:
        # Non-blocking: opening a named pipe must not wait for a writer.
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise UserError(f"{path}: cannot be {what}: it is no ordinary file")
            if status.st_size > limit:
                raise UserError(f"{path}: cannot be {what}: {status.st_size:,} bytes, the format allows {limit:,}")
            return file.read(status.st_size)
    except OSError as error:
        raise UserError(f"{path}: cannot read {what}: {error.strerror}") from error
