"""The process of a command, by `jepamba` or `python -m jepamba`: from its first moment to its last."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from jepamba.cli import INTERRUPTED, main


def run(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command in `argv` (default: the process's own), and end the process with its exit code.

    A rank that has not parted from the others, since something went wrong or a signal came, ends at once once all is
    said: Python would take PyTorch's groups down, and that waits for ranks that may be gone, and in NCCL for the last
    captured graph with sums in it, for which there may be none to let go of it.
    """
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        # Inherited, as by a command that a script starts with `&`: the command must be able to end all the same.
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)
    code = 1
    try:
        code = _code(argv)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
    finally:
        # Whatever comes in between, be it another Ctrl-C.
        distributed = sys.modules.get("torch.distributed")
        if distributed is not None and distributed.is_available() and distributed.is_initialized():
            os._exit(code)
    sys.exit(code)


def _code(argv: Sequence[str] | None) -> int:
    """The command's exit code, once all that Python would say of its end is said."""
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
