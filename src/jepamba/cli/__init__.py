"""The `jepamba` command: parse, call, print. PyTorch is imported only when a command needs it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches

from jepamba import __version__
from jepamba.cli import (
    compress,
    data,
    demo,
    evaluate,
    generate,
    inspect,
    presets,
    resume,
    study,
    submission,
    train,
    watch,
)
from jepamba.cli.flags import spell_out, unknown_flag
from jepamba.cli.parser import Commands, Parser
from jepamba.errors import UserError

USER_MISTAKE, INTERRUPTED, PIPE_CLOSED = 2, 130, 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command in `argv` (default: the process's own) and return its exit code.

    0: done; 1: a run of a study failed; 2: a user's mistake, one line on standard error; 130: interrupted, with a line
    that says how to go on.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    args = argparse.Namespace(on_interrupt="interrupted")
    try:
        args = parse(words)
        from jepamba.progress import plain_lines

        plain_lines(args.json)
        result: int = args.run(args)
        sys.stdout.flush()
        return result
    except UserError as error:
        return _mistake(str(error))
    except KeyboardInterrupt:
        from jepamba.progress import is_silent

        if not is_silent():
            print(f"\njepamba: {args.on_interrupt}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has gone (`jepamba inspect … | head`); Python's last flush must not complain of it either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except OSError as error:
        # A full disk, a file that may not be read, a folder where a file should be: the system says what, we say where.
        return _mistake(": ".join(str(part) for part in (error.filename, error.strerror or error) if part))


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The arguments in `words`, with `run`, the function of the command.

    Raises `UserError` for whatever cannot be understood, and `SystemExit(0)` after `--help` and `--version`.
    """
    parser, commands = build_parser()
    words = spell_out(words)
    if not words:
        parser.print_help()
        raise SystemExit(0)
    first = next((word for word in words if not word.startswith("-")), None)
    if first is not None and first not in commands:
        close = get_close_matches(first, commands, 1)
        hint = f"did you mean `jepamba {close[0]}`?" if close else f"there are {', '.join(commands)}"
        raise UserError(f"unknown command {first!r}; {hint}")
    args, extra = parser.parse_known_args(words, argparse.Namespace(json=False, on_interrupt="interrupted"))
    if extra:
        raise UserError(_unexpected(extra[0], args))
    return args


def build_parser() -> tuple[Parser, list[str]]:
    """The parser of the whole command line, and the names of the commands."""
    parser = Parser(
        prog="jepamba",
        description="Train, pack, score and sample tiny text language models: LeWorldModels on a Mamba-2 backbone.",
        epilog="A first look: jepamba demo. Help on a command: jepamba COMMAND --help.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"jepamba {__version__}")
    commands = Commands(parser)
    for file in (demo, train, resume, watch, presets, evaluate, generate, inspect, compress, data, study, submission):
        file.add(commands)
    return parser, commands.names


def _unexpected(word: str, args: argparse.Namespace) -> str:
    flag = word.partition("=")[0]
    if not word.startswith("-"):
        return f"unexpected argument {word!r}; `{args.prog} --help` shows how"
    if "." in flag and args.other_settings:
        return f"{flag}: {args.other_settings}"
    return unknown_flag(word, [option.removeprefix("--") for option in args.options if option.startswith("--")])


def _mistake(message: str) -> int:
    print(f"jepamba: {' '.join(message.split())}", file=sys.stderr)
    return USER_MISTAKE
