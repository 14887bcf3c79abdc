"""The one error that a user causes and a user can mend; and what ranks tell each other of any."""

from __future__ import annotations

import signal

SIGNALS = {signal.SIGINT: "it was interrupted", signal.SIGTERM: "it was sent SIGTERM"}
"""Which signals end a rank, and what it then says."""


class UserError(Exception):
    """Bad input: one line that says what is wrong, where, and what to do. The command line prints it and exits 2."""


def in_words(error: BaseException) -> str:
    """What other ranks are told of `error`."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        return SIGNALS[signal.SIGINT]
    if isinstance(error, SystemExit):
        asked = [said for number, said in SIGNALS.items() if error.code == 128 + number]
        return asked[0] if asked else f"it ended itself (exit code {error.code})"
    return f"{type(error).__name__}: {error}"
