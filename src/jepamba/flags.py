"""Every field of the config as a command-line flag: `--train.steps 100`, `--data.shuffle no`, `--model.mlp-mult=3`.

Hyphens and underscores are the same. A yes-or-no flag may stand alone (`--train.compile`), as `--train.no-compile`, or
with true/false, yes/no, on/off, 1/0.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, get_type_hints

import tyro

from jepamba.config import Run, to_dict
from jepamba.errors import UserError

_TRUE = {"true", "yes", "on", "1"}
_FALSE = {"false", "no", "off", "0"}
_TYRO = (tyro.conf.FlagConversionOff,)


def flag_types() -> dict[str, Any]:
    """The type of every flag, by its dotted name."""
    return {
        f"{room}.{key}": hint
        for room, section in get_type_hints(Run).items()
        for key, hint in get_type_hints(section).items()
    }


def split_flags(args: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """The config flags among `args`, with their values as written, and all other arguments in order.

    A flag given twice: the last one counts. Raises `UserError` for an unknown flag, naming the nearest, and for a
    missing value.
    """
    types = flag_types()
    found: dict[str, list[str]] = {}
    rest: list[str] = []
    waiting = list(args)
    while waiting:
        word = waiting.pop(0)
        if word == "--":
            return found, [*rest, word, *waiting]
        match = re.fullmatch(r"--([a-z]+[.][^=]*)(?:=(.*))?", word, re.DOTALL)
        if match is None:
            rest.append(word)
            continue
        name, inline = match.group(1).replace("-", "_"), match.group(2)
        negated = name.replace(".no_", ".", 1)
        if name not in types and types.get(negated) is bool and inline is None:
            found[negated] = ["False"]
            continue
        if name not in types:
            raise UserError(f"unknown flag --{name}; {nearest(name, types)}")
        found[name] = _values(name, types[name], inline, waiting)
    return found, rest


def parse_flags(base: Run, flags: Mapping[str, list[str]]) -> Run:
    """`base` with the settings of `flags` (as `split_flags` gives them). Raises `UserError` for a bad value."""
    words = [word for name, values in one_budget(flags).items() for word in (f"--{name}", *values)]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            return tyro.cli(Run, default=base, args=words, config=_TYRO, use_underscores=True, prog="jepamba")
    except SystemExit:
        raise UserError(_one_line(said.getvalue())) from None


def parse_settings(base: Run, flags: Mapping[str, list[str]]) -> dict[str, Any]:
    """The settings of `flags` alone, dotted and typed as `config.with_settings` takes them."""
    nested = to_dict(parse_flags(base, flags))
    return {name: nested[name.partition(".")[0]][name.partition(".")[2]] for name in one_budget(flags)}


def one_budget(flags: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """`flags`, where a budget in steps alone takes the preset's seconds away, and the other way round.

    Whoever asks for 1,000 steps wants 1,000 steps, not what of them fits into the time that the preset came with.
    """
    given = {name: flags[name] for name in ("train.steps", "train.seconds") if name in flags}
    if len(given) != 1 or next(iter(given.values()))[0] in ("0", "0.0"):
        return dict(flags)
    other = "train.seconds" if "train.steps" in given else "train.steps"
    return {**flags, other: ["0"]}


def flags_help() -> str:
    """All flags with their defaults and what they do, as text for a terminal."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        tyro.cli(Run, default=Run(), args=["--help"], config=_TYRO, use_underscores=True, prog="jepamba train PRESET")
    # Less its usage line and the general options, which the caller has shown already.
    first = re.search(r"^\W*data options", said.getvalue(), re.MULTILINE)
    return said.getvalue()[first.start() if first else 0 :]


def nearest(name: str, known: Mapping[str, Any] | Sequence[str]) -> str:
    """Advice for a mistyped `name`: the nearest of the `known` flags, by their whole or by their last part."""
    by_tail = {flag.rpartition(".")[2]: flag for flag in reversed(list(known))}
    tail = name.rpartition(".")[2]
    close = [by_tail[tail]] if tail in by_tail else get_close_matches(name, list(known), 1, 0.6)
    close = close or [by_tail[other] for other in get_close_matches(tail, list(by_tail), 1, 0.75)]
    return f"did you mean --{close[0]}?" if close else "--help lists all flags"


def _values(name: str, hint: Any, inline: str | None, waiting: list[str]) -> list[str]:
    """The values of flag `name`; those that are not `inline` are taken off the front of `waiting`."""
    several = getattr(hint, "__origin__", None) is tuple
    if inline is not None:
        values = [inline]
    elif several:
        values = []
        while waiting and not waiting[0].startswith("--"):
            values.append(waiting.pop(0))
    elif hint is bool and (not waiting or waiting[0].lower() not in _TRUE | _FALSE):
        values = ["true"]
    else:
        values = [waiting.pop(0)] if waiting and not waiting[0].startswith("--") else []
    if not values and not several:
        raise UserError(f"--{name} needs a value")
    if hint is bool:
        word = values[0].lower()
        if word not in _TRUE | _FALSE:
            raise UserError(f"--{name} {values[0]}: say yes or no")
        return [str(word in _TRUE)]
    return values


def _one_line(box: str) -> str:
    """What stands between the first two rules of a message in a box, drawn in Unicode or in ASCII, as one line."""
    body: list[str] = []
    rules = 0
    for line in (line.strip("│| ").strip() for line in box.splitlines()):
        if re.fullmatch(r"[╭╰─-].*[╮╯─-]", line):
            rules += 1
        elif rules == 1 and line:
            body.append(line)
    return " ".join(body) or "a flag's value could not be read; --help lists all flags"
