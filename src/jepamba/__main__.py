"""The process of a command, by `jepamba` or `python -m jepamba`: from its first moment to its last."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from jepamba.cli import main


def run(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command in `argv` (default: the process's own), and end the process with its exit code.

    A rank that has not parted from the others, since something went wrong or a signal came, ends at once once all is
    said: Python would take PyTorch's groups down, and that waits for ranks that may be gone, and in NCCL for the last
    captured graph with sums in it, for which there may be none to let go of it.
    """
    code: str | int | None
    try:
        code = main(argv)
    except SystemExit as end:
        code = end.code
    except Exception:
        traceback.print_exc()
        code = 1
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 0 if code is None else 1)
    sys.exit(code)


if __name__ == "__main__":
    run()
