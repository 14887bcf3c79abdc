"""The `jepamba` command: parse, call, print. PyTorch is imported only when a command needs it."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches

from jepamba import __version__
from jepamba.cli import (
    compare,
    completion,
    compress,
    data,
    demo,
    evaluate,
    export,
    generate,
    hub,
    inspect,
    latents,
    presets,
    resume,
    study,
    submission,
    train,
    watch,
)
from jepamba.cli.flags import misplaced_flag_message, normalize_flags, unknown_flag_message, without_separator
from jepamba.cli.parser import Commands, Parser
from jepamba.errors import UserError

REMEDIES = {
    errno.ENOSPC: "make room there, or choose another place",
    errno.EDQUOT: "make room there, or choose another place",
    errno.EROFS: "choose another place",
    errno.EACCES: "change its permissions, or choose another place",
    errno.EPERM: "change its permissions, or choose another place",
}
"""What to do about an error of the operating system that no command has foreseen."""
USER_ERROR, INTERRUPTED, PIPE_CLOSED = 2, 130, 141
DEFAULTS = {"json": False, "on_interrupt": "interrupted", "results_in": None}
"""Of every command. A command sets `results_in` when its results are on disk and only its summary is to be printed."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Arguments: `argv`, the words after `jepamba` (default: `sys.argv[1:]`).
    Returns: the exit code. 0: success. 1: a run of a study failed. 2: a user error, with one line on standard error.
    130: interrupted, with one line that says how to continue. 141: the reader of standard output closed the pipe before
    the results, unless they are in a file.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    args = argparse.Namespace(**DEFAULTS)
    try:
        _check_current_folder()
        args = parse(words)
        from jepamba.progress import plain_lines

        plain_lines(args.json)
        result: int = args.run(args)
        sys.stdout.flush()
        return result
    except UserError as error:
        return _print_user_error(str(error))
    except KeyboardInterrupt:
        from jepamba.progress import is_silent

        if not is_silent():
            print(f"\njepamba: {args.on_interrupt}", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        # For example a full disk, a file without read permission, or a folder in place of a file.
        message = ": ".join(str(text) for text in (error.filename, error.strerror or error) if text)
        if args.results_in is not None:
            _print_user_error(f"standard output: {message}; the results are in {args.results_in}")
            return 0
        if error.filename and error.errno in REMEDIES:
            message += f"; {REMEDIES[error.errno]}"
        # The reader closed the pipe (`jepamba inspect … | head`).
        return PIPE_CLOSED if isinstance(error, BrokenPipeError) else _print_user_error(message)


def _check_current_folder() -> None:
    """Raise `UserError` if the current folder was deleted: libraries would end the process without a word."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise UserError("the current folder was deleted; change to another") from None


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Parse a command line.

    Returns: the arguments; their attribute `run` is the function that executes the command.
    Raises: `UserError` for an unknown command, flag or value; `SystemExit(0)` after `--help` and `--version`.
    """
    parser, commands = build_parser()
    words = normalize_flags(words)
    if not words:
        parser.print_help()
        raise SystemExit(0)
    first = next((word for word in words if not word.startswith("-")), None)
    if first is not None and first not in commands:
        close = get_close_matches(first, commands, 1)
        hint = f"did you mean `jepamba {close[0]}`?" if close else f"commands: {', '.join(commands)}"
        raise UserError(f"unknown command {first!r}; {hint}")
    args, extra = parser.parse_known_args(words, argparse.Namespace(**DEFAULTS))
    unexpected = without_separator(extra)
    if unexpected:
        raise UserError(_unexpected_message(unexpected[0], args))
    return args


def build_parser() -> tuple[Parser, list[str]]:
    """Return the parser of the whole command line and the names of the commands."""
    parser = Parser(
        prog="jepamba",
        description="Train, export, score and sample small Mamba-2 language models, measured in bits per byte.",
        epilog="To start: jepamba demo. Help for a command: jepamba COMMAND --help.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"jepamba {__version__}")
    commands = Commands(parser)
    for module in (
        demo, train, resume, watch, compare, presets, evaluate, latents, generate, inspect, compress, export, hub, data,
        study, submission, completion,
    ):  # fmt: skip
        module.add(commands)
    return parser, commands.names


def _unexpected_message(word: str, args: argparse.Namespace) -> str:
    flag = word.partition("=")[0]
    if not word.startswith("-"):
        return f"unexpected argument {word!r}; see `{args.prog} --help`"
    if flag in args.options:
        return misplaced_flag_message(flag)
    if "." in flag and args.settings_error:
        return f"{flag}: {args.settings_error}"
    return unknown_flag_message(word, [option.removeprefix("--") for option in args.options if option.startswith("--")])


def _print_user_error(message: str) -> int:
    print(f"jepamba: {' '.join(message.split())}", file=sys.stderr)
    return USER_ERROR
