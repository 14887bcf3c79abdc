"""Standard streams that cannot end a command: closed ones, encodings that lack a character, logs that nobody reads."""

from __future__ import annotations

import io
import os
import stat
import sys
from typing import Any

from jepamba.errors import UserError

STDIN = "-"
"""The path of standard input."""
MAX_STDIN = 1 << 28


def prepare_streams() -> None:
    """Open the standard streams that are closed, escape what their encoding lacks, and ignore errors of stderr.

    A closed descriptor is opened as the null device, so that no file of the command gets its number and the messages.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    sys.stdout = _stream(io.FileIO(1, "w", closefd=False), sys.stdout)
    sys.stderr = _stream(_NeverFails(2, "w", closefd=False), sys.stderr)


def read_stdin(what: str, limit: int) -> bytes:
    """Return all of standard input, which the command line names `-`. Error messages call it `what`.

    Raises `UserError` for more than `limit` bytes.
    """
    data = b"" if sys.stdin is None else sys.stdin.buffer.read(limit + 1)
    if len(data) > limit:
        raise UserError(f"standard input cannot be {what}: more than {limit:,} bytes; give a file")
    return data


def stdin_is_piped() -> bool:
    """Whether standard input is a pipe or a file, and not a terminal, the null device or closed."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (AttributeError, OSError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def read_stdin_text(what: str) -> str:
    """Return standard input as text. Raises `UserError` if it is not UTF-8."""
    try:
        return read_stdin(what, MAX_STDIN).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"standard input cannot be {what}: not UTF-8 (byte 0x{error.object[error.start]:02X} at {error.start:,})"
        ) from None


def _stream(file: io.FileIO, before: Any) -> io.TextIOWrapper:
    """A text stream over `file` with the encoding of `before`, which is None if its descriptor was closed."""
    encoding = getattr(before, "encoding", "utf-8")
    by_line = file.isatty() or isinstance(file, _NeverFails)
    return io.TextIOWrapper(io.BufferedWriter(file), encoding, "backslashreplace", line_buffering=by_line)


class _NeverFails(io.FileIO):
    """A file that drops what it cannot write, as on a full disk or to a pipe that nobody reads any more."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or len(data)
        except OSError:
            return len(data)
