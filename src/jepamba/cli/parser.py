"""The parser of the command line: each command with its examples, its flags and the function that it calls."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import NoReturn

from jepamba.errors import UserError


class Parser(argparse.ArgumentParser):
    """A parser that raises `UserError` for a mistake."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (`{self.prog} --help` shows how)")


class Commands:
    """The commands of a parser; `names` are theirs."""

    def __init__(self, parser: Parser) -> None:
        self._actions = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=Parser, required=True)
        self.names: list[str] = []

    def add(self, name: str, run: Callable[[argparse.Namespace], int], purpose: str, examples: Sequence[str]) -> Parser:
        """The parser of the new command `name`: `run` takes its arguments and returns the exit code."""
        parser = self._parser(name, purpose, examples)
        parser.add_argument("--json", action="store_true", help="print one JSON object, for machines")
        parser.set_defaults(run=run, prog=parser.prog, options=parser._option_string_actions, other_settings="")
        return parser

    def group(self, name: str, purpose: str, examples: Sequence[str]) -> Commands:
        """The commands below the new word `name`."""
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
