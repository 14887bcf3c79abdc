"""Entry point of `jepamba` and `python -m jepamba`: names, signals, exit codes and the end of the process."""

from __future__ import annotations

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Until `run`, Ctrl-C ends the process without the traceback of an import.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import os
import sys
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

from jepamba.cli import INTERRUPTED, main
from jepamba.cli.streams import prepare_streams


def run(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command in `argv` (default: `sys.argv[1:]`) and end the process with its exit code.

    If the process group still exists, an error or a signal ended this rank. The process then exits without Python's
    shutdown, which would destroy the process group: that waits for ranks that may be gone, and with NCCL also for
    captured CUDA graphs that contain collectives.
    """
    if argv is None:
        _read_names_as_utf8()
    # A shell script ignores SIGINT for a command started with `&`. The command must still answer signals.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _terminate)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # `nohup` ignores it
        signal.signal(signal.SIGHUP, _terminate)
    prepare_streams()
    code = 1
    try:
        code = _exit_code(argv)
        try:
            sys.stdout.flush()
        except OSError:
            # Otherwise Python's own flush at the end fails again, with a message and another exit code.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    finally:
        # In `finally`, so that another Ctrl-C cannot skip it.
        distributed = sys.modules.get("torch.distributed")
        if distributed is not None and distributed.is_available() and distributed.is_initialized():
            os._exit(code)
    sys.exit(code)


def _read_names_as_utf8() -> None:
    """Start again in Python's UTF-8 mode if names of files would be ASCII (`LC_ALL=C PYTHONUTF8=0`).

    Files of settings are UTF-8, and the names in them are those of files. The output keeps its encoding.
    """
    if sys.getfilesystemencoding() != "ascii" or os.environ.get("PYTHONUTF8") == "1":
        return
    encoding = getattr(sys.stdout or sys.stderr, "encoding", "ascii")
    environment = {"PYTHONIOENCODING": encoding, **os.environ, "PYTHONUTF8": "1"}
    os.execve(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]], environment)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    """End the command as an error does, so that it removes the files that it has begun."""
    raise SystemExit(128 + number)


def _exit_code(argv: Sequence[str] | None) -> int:
    """Run the command and return its exit code. Prints what Python would print at its end, such as a traceback."""
    try:
        return main(argv)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BaseException:
        traceback.print_exc()
    return 1


if __name__ == "__main__":
    run()
