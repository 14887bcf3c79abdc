"""JSON that a stranger wrote: parsed strictly, and read with the types that are expected."""

from __future__ import annotations

import json
import math
from typing import Any, TypeVar

from jepamba.errors import UserError

T = TypeVar("T")


def parse(text: bytes) -> dict[str, Any]:
    """The JSON object in `text` (UTF-8). Raises `UserError` for anything else: bad UTF-8, a repeated key, NaN or
    infinity, endless nesting, an integer of thousands of digits."""
    try:
        value = json.loads(
            text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite
        )
    except RecursionError as error:
        raise UserError("its JSON header is nested too deeply") from error
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError among them
        raise UserError(f"its header is not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise UserError("its header is not a JSON object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key appears twice")
    return values


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError("a number is too large")
    return value


def take(values: dict[str, Any], key: str, kind: type[T], where: str = "header") -> T:
    """`values[key]`, which must be of type `kind` (a bool is no int; an int will do for a float).

    Raises `UserError` naming `where` and the key.
    """
    if key not in values:
        raise UserError(f"its {where} has no {key!r}")
    value = values[key]
    if kind is float and type(value) is int and abs(value) < 2**53:
        value = float(value)
    if type(value) is not kind:
        raise UserError(f"its {where} has {key!r} of the wrong type: {kind.__name__} expected")
    checked: T = value
    return checked


def take_count(values: dict[str, Any], key: str, most: int, where: str = "header") -> int:
    """`values[key]`, an integer from 0 to `most`. Raises `UserError` otherwise."""
    value = take(values, key, int, where)
    if not 0 <= value <= most:
        raise UserError(f"its {where} has {key!r} = {str(value)[:24]}: outside 0 to {most:,}")
    return value
