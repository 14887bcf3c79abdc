"""The error class for user mistakes, and messages for errors that end a rank."""

from __future__ import annotations

import signal

SIGNALS = {
    signal.SIGINT: "it was interrupted",
    signal.SIGTERM: "it was sent SIGTERM",
    signal.SIGHUP: "its terminal was closed",
}
"""The signals that end a rank, with the message that the rank sends."""


class UserError(Exception):
    """Invalid input. The message is one line with the problem, the place and the remedy. The CLI exits with code 2."""


class DivergedError(UserError):
    """What a model computes is not finite."""

    def __init__(self) -> None:
        super().__init__("the model has diverged, it computes no finite values: train again with a lower learning rate")


def one_line(text: object) -> str:
    """Return `text`, which may quote a file, in one line of at most 300 characters."""
    return " ".join(str(text).split())[:300]


def in_words(error: BaseException) -> str:
    """Describe `error` in one line for the other ranks."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        return SIGNALS[signal.SIGINT]
    if isinstance(error, SystemExit):
        messages = [message for number, message in SIGNALS.items() if error.code == 128 + number]
        return messages[0] if messages else f"it ended itself (exit code {error.code})"
    return f"{type(error).__name__}: {error}"
