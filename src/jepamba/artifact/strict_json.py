"""Strict parsing of untrusted JSON objects, and type-checked access to their fields."""

from __future__ import annotations

import json
import math
from typing import Any, TypeVar

from jepamba.errors import UserError

T = TypeVar("T")


def parse_object(text: bytes) -> dict[str, Any]:
    """Return the JSON object in `text` (UTF-8).

    Raises `UserError` for anything else, including invalid UTF-8, a repeated key, NaN, infinity, deep nesting, and an
    integer of thousands of digits.
    """
    try:
        value = json.loads(
            text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite
        )
    except RecursionError as error:
        raise UserError("its JSON header is nested too deeply") from error
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
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


def read_field(values: dict[str, Any], key: str, kind: type[T], where: str = "header") -> T:
    """Return `values[key]`, which must have the type `kind`. A bool is not an int; an int is converted to a float.

    Raises `UserError`, which names `where` and the key.
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


def read_count(values: dict[str, Any], key: str, maximum: int, where: str = "header") -> int:
    """Return `values[key]`, an integer from 0 to `maximum`. Raises `UserError` for any other value."""
    value = read_field(values, key, int, where)
    if not 0 <= value <= maximum:
        raise UserError(f"its {where} has {key!r} = {str(value)[:24]}: outside 0 to {maximum:,}")
    return value
