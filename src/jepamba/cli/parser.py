"""The argument parser: each command has examples, flags and the function that executes it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from jepamba.errors import UserError
from jepamba.hub_names import is_meant_for_hub
from jepamba.io import not_utf8


def local_path(text: str) -> Path:
    """Convert an argument to a path. A name on the hub, which `Path` would change to `hf:/…`, is refused."""
    if is_meant_for_hub(text):
        raise UserError(f"{text} is a name on the hub; give a local path")
    return Path(text)


def plain_text(text: str) -> str:
    """Convert an argument to text for a file. What is not UTF-8 is refused."""
    if reason := not_utf8(text):
        raise UserError(f"{text!r}: this text {reason}; give it in UTF-8")
    return text


def output_file(text: str) -> Path:
    """Convert an argument to the path of a file to write; `-` is standard output."""
    return Path("/dev/stdout") if text == "-" else local_path(text)


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that raises `UserError` instead of exiting."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see `{self.prog} --help`)")


class Commands:
    """The subcommands of a parser. `names` lists them in order."""

    def __init__(self, parser: Parser) -> None:
        self._actions = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=Parser, required=True)
        self.names: list[str] = []

    def add(self, name: str, run: Callable[[argparse.Namespace], int], purpose: str, examples: Sequence[str]) -> Parser:
        """Add the command `name` and return its parser. `run` takes the parsed arguments and returns the exit code."""
        parser = self._parser(name, purpose, examples)
        parser.add_argument("--json", action="store_true", help="print one JSON object")
        parser.set_defaults(run=run, prog=parser.prog, options=parser._option_string_actions, settings_error="")
        return parser

    def group(self, name: str, purpose: str, examples: Sequence[str]) -> Commands:
        """Add the command group `name` and return its subcommands."""
        return Commands(self._parser(name, purpose, examples))

    def _parser(self, name: str, purpose: str, examples: Sequence[str]) -> Parser:
        self.names.append(name)
        return self._actions.add_parser(
            name,
            help=purpose,
            description="\n  ".join([f"{purpose}\n\nexamples:", *examples]),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
