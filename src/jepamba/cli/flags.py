"""Command-line flags for all settings: `--train.steps 100`, `--data.shuffle no`, `--model.mlp-mult=3`.

Hyphens and underscores are equivalent. A Boolean flag takes true/false, yes/no, on/off or 1/0. Without a value
(`--train.graph`) it means yes; `--train.no-graph` means no.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints

from jepamba.config import Run, field_docs, setting_types
from jepamba.config.other_names import suggestion
from jepamba.errors import UserError

_YES = {"true", "yes", "on", "1"}
_NO = {"false", "no", "off", "0"}


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add a flag for every setting to `parser`, one group per section. The help has the docstring and the default."""
    # The usage line omits the settings, which would fill a page.
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
            help_ = f"{text} (default: {_format_value(default)})".replace("%", "%%")
            group.add_argument(f"--{section}.{name}", default=argparse.SUPPRESS, help=help_, **kind)


def settings_from_args(args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings among the parsed `args`, by dotted name."""
    return {name: value for name, value in vars(args).items() if name in setting_types()}


def parse_settings(words: Sequence[str]) -> dict[str, Any]:
    """Parse `words`, which must all be flags of settings. For scripts that have other flags too.

    Returns: the settings by dotted name.
    Raises: `UserError` for an unknown flag, with the closest known one, and for a missing or malformed value.
    """
    parser = _SettingsParser(add_help=False, allow_abbrev=False)
    add_settings(parser)
    args, extra = parser.parse_known_args(normalize_flags(words))
    unexpected = without_separator(extra)
    if unexpected:
        raise UserError(unknown_flag_message(unexpected[0], setting_types()))
    return settings_from_args(args)


def normalize_flags(words: Sequence[str]) -> list[str]:
    """Return `words` with every flag of a setting in the unambiguous form `--section.some_setting=value`."""
    types = setting_types()
    normalized: list[str] = []
    remaining = list(words)
    while remaining:
        word = remaining.pop(0)
        match = re.fullmatch(r"--([a-z]+[.][^=]*)(?:=(.*))?", word, re.DOTALL)
        if word == "--":
            return [*normalized, word, *remaining]
        if match is None:
            normalized.append(word)
            continue
        name, value = match[1].replace("-", "_"), match[2]
        hint = types.get(name)
        following = remaining[0] if remaining and not remaining[0].startswith("--") else None
        if hint is None and value is None and types.get(name.replace(".no_", ".", 1)) is bool:
            name, value = name.replace(".no_", ".", 1), "no"
        elif hint is bool and value is None and (following is None or following.lower() not in _YES | _NO):
            value = "yes"
        elif hint is not None and get_origin(hint) is not tuple and value is None and following is not None:
            value = remaining.pop(0)
        normalized.append(f"--{name}" if value is None else f"--{name}={value}")
    return normalized


def without_separator(words: Sequence[str]) -> list[str]:
    """Return `words` without `--`, which argparse leaves among those that it does not know."""
    return [word for word in words if word != "--"]


def unknown_flag_message(word: str, known: Collection[str]) -> str:
    """Return the error message for the unexpected flag `word`, with what it is likely to mean."""
    flag = word.partition("=")[0]
    if flag.lstrip("-") in known:
        return misplaced_flag_message(flag)
    hint = suggestion(flag.lstrip("-"), known, "--")
    return f"unknown flag {flag}; {hint or '--help lists all flags'}"


def misplaced_flag_message(flag: str) -> str:
    """Return the error message for a known flag before the command or after `--`."""
    return f"misplaced flag {flag}; flags go after the command and before any --"


class _SettingsParser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise UserError(message)


def _converter(hint: Any) -> Callable[[str], Any]:
    if get_origin(hint) is Literal:
        return lambda text: _parse_choice(text, get_args(hint))
    return _parse_bool if hint is bool else hint


def _parse_choice(text: str, choices: Sequence[Any]) -> Any:
    for choice in choices:
        if str(choice) == text:
            return choice
    raise argparse.ArgumentTypeError(f"{text!r}: use one of {', '.join(map(_format_value, choices))}")


def _parse_bool(text: str) -> bool:
    if text.lower() not in _YES | _NO:
        raise argparse.ArgumentTypeError(f"{text!r}: use yes or no")
    return text.lower() in _YES


def _metavar(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return f"{{{','.join(map(_format_value, get_args(hint)))}}}"
    return {bool: "yes|no", int: "N", float: "X"}.get(hint, "TEXT")


def _format_value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return " ".join(map(repr, value)) or "none"
    return "empty" if value == "" else str(value)
