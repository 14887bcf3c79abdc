"""Every setting as a command-line flag: `--train.steps 100`, `--data.shuffle no`, `--model.mlp-mult=3`.

Hyphens and underscores are the same. A yes-or-no flag may stand alone (`--train.compile`), as `--train.no-compile`, or
with true/false, yes/no, on/off, 1/0.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Collection, Sequence
from difflib import get_close_matches
from typing import Any, Literal, get_args, get_origin, get_type_hints

from jepamba.config import Run, field_docs, setting_types
from jepamba.errors import UserError

_YES = {"true", "yes", "on", "1"}
_NO = {"false", "no", "off", "0"}


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Give `parser` a flag for every setting, in a group for each section, with its docstring and default as help."""
    # Without the settings: the usage line would be a page long.
    usage = parser.format_usage().removeprefix("usage: ").rstrip()
    parser.usage = f"{usage} [--SECTION.SETTING VALUE ...]".replace("%", "%%")
    types = setting_types()
    for section, cls in get_type_hints(Run).items():
        group = parser.add_argument_group(f"[{section}]", cls.__doc__)
        for name, text in field_docs(cls).items():
            hint = types[f"{section}.{name}"]
            default = cls.__dataclass_fields__[name].default
            kind: dict[str, Any] = {"type": _converter(hint), "metavar": _metavar(hint)}
            if get_origin(hint) is tuple:
                kind = {"nargs": "*", "metavar": "TEXT"}
            help_ = f"{text} (default: {_shown(default)})".replace("%", "%%")
            group.add_argument(f"--{section}.{name}", default=argparse.SUPPRESS, help=help_, **kind)


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """The layer of dotted settings that the flags in `args` make."""
    return {name: value for name, value in vars(args).items() if name in setting_types()}


def parse_settings(words: Sequence[str]) -> dict[str, Any]:
    """The layer of dotted settings in `words`, which are flags of settings alone, for scripts with flags of their own.

    Raises `UserError` for an unknown flag, naming the nearest one, and for a value that is missing or of a wrong type.
    """
    parser = _SettingsParser(add_help=False, allow_abbrev=False)
    add_settings(parser)
    args, extra = parser.parse_known_args(spell_out(words))
    if extra:
        raise UserError(unknown_flag(extra[0], setting_types()))
    return settings_of(args)


def spell_out(words: Sequence[str]) -> list[str]:
    """`words` with each flag of a setting as argparse reads it without doubt: `--section.some_setting=value`."""
    types = setting_types()
    done: list[str] = []
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        match = re.fullmatch(r"--([a-z]+[.][^=]*)(?:=(.*))?", word, re.DOTALL)
        if word == "--":
            return [*done, word, *waiting]
        if match is None:
            done.append(word)
            continue
        name, value = match[1].replace("-", "_"), match[2]
        hint = types.get(name)
        following = waiting[0] if waiting and not waiting[0].startswith("--") else None
        if hint is None and value is None and types.get(name.replace(".no_", ".", 1)) is bool:
            name, value = name.replace(".no_", ".", 1), "no"
        elif hint is bool and value is None and (following is None or following.lower() not in _YES | _NO):
            value = "yes"
        elif hint is not None and get_origin(hint) is not tuple and value is None and following is not None:
            value = waiting.pop(0)
        done.append(f"--{name}" if value is None else f"--{name}={value}")
    return done


def unknown_flag(word: str, known: Collection[str]) -> str:
    """The message for the flag `word`, not one of the `known`: it names the nearest, by whole name or last part."""
    flag = word.partition("=")[0]
    name, tails = flag.lstrip("-"), {other.rpartition(".")[2]: other for other in reversed(list(known))}
    tail = name.rpartition(".")[2]
    close = [tails[tail]] if tail in tails else get_close_matches(name, list(known), 1, 0.6)
    close = close or [tails[other] for other in get_close_matches(tail, list(tails), 1, 0.75)]
    return f"unknown flag {flag}; " + (f"did you mean --{close[0]}?" if close else "--help lists all flags")


class _SettingsParser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise UserError(message)


def _converter(hint: Any) -> Callable[[str], Any]:
    if get_origin(hint) is Literal:
        return lambda text: _choice(text, get_args(hint))
    return _yes_or_no if hint is bool else hint


def _choice(text: str, choices: Sequence[Any]) -> Any:
    for choice in choices:
        if str(choice) == text:
            return choice
    raise argparse.ArgumentTypeError(f"{text!r}: use one of {', '.join(map(_shown, choices))}")


def _yes_or_no(text: str) -> bool:
    if text.lower() not in _YES | _NO:
        raise argparse.ArgumentTypeError(f"{text!r}: say yes or no")
    return text.lower() in _YES


def _metavar(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return f"{{{','.join(map(_shown, get_args(hint)))}}}"
    return {bool: "yes|no", int: "N", float: "X"}.get(hint, "TEXT")


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return " ".join(map(repr, value)) or "none"
    return "empty" if value == "" else str(value)
