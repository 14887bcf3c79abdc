"""Layers of settings, their merge and their validation.

A layer is a dictionary of dotted settings, such as `{"train.steps": 200, "jepa.weight": 0.0}`. A preset, an overlay, a
study plan, a configuration of the plan and the command line each give one layer:

    run = build(merge(preset_settings("cpu"), {"train.steps": 200}))
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
from collections.abc import Mapping
from typing import Any, Literal, get_type_hints

from jepamba.config.checks import ConfigError, require
from jepamba.config.other_names import suggestion
from jepamba.config.run import Run
from jepamba.config.train import BUDGETS
from jepamba.io import not_utf8

BUDGET_SETTINGS = tuple(f"train.{name}" for name in BUDGETS)
DIAL = "train.dial"
"""The names of the settings that the dial chooses."""


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Merge `layers` of dotted settings; a later layer overrides an earlier one.

    A layer that sets a budget removes the budgets of earlier layers: `train.steps = 1000` over a preset of 20 minutes
    means 1,000 steps, not as many as fit into 20 minutes. A layer may set several budgets. A setting that a layer gives
    is removed from the `train.dial` of earlier layers.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        if any(layer.get(name) for name in BUDGET_SETTINGS):
            merged = {name: value for name, value in merged.items() if name not in BUDGET_SETTINGS}
        if DIAL in merged:
            merged[DIAL] = [name for name in merged[DIAL] if name not in layer]
        merged.update(layer)
    return merged


def flatten(values: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten the nested `values` of a TOML or JSON file to dotted settings.

    Raises `ConfigError` for an unknown section.
    """
    flat: dict[str, Any] = {}
    for section, settings in values.items():
        require(section in _hints(Run), f"unknown section [{section}]; use one of {', '.join(_hints(Run))}")
        require(isinstance(settings, Mapping), f"[{section}] must be a table of settings")
        flat.update({f"{section}.{name}": value for name, value in settings.items()})
    return flat


def build(settings: Mapping[str, Any]) -> Run:
    """Build the validated `Run` of dotted `settings`; absent settings have their defaults.

    Raises `ConfigError` for an unknown setting, a value of the wrong type, and a refused value.
    """
    types = setting_types()
    sections: dict[str, dict[str, Any]] = {}
    for dotted, value in settings.items():
        if dotted not in types:
            hint = suggestion(dotted, types)
            raise ConfigError(f"unknown setting {' '.join(dotted.split())[:80]}{'; ' if hint else ''}{hint}")
        section, _, name = dotted.partition(".")
        sections.setdefault(section, {})[name] = _checked(dotted, types[dotted], value)
    return Run(**{section: _hints(Run)[section](**values) for section, values in sections.items()})


def from_dict(values: Mapping[str, Any]) -> Run:
    """Build the `Run` of nested `values`; the inverse of `to_dict`. Raises `ConfigError` as `build` does."""
    return build(flatten(values))


def to_dict(run: Run) -> dict[str, dict[str, Any]]:
    """Return `run` as nested dictionaries for TOML or JSON, with lists for tuples."""
    return {
        section: {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
        for section, values in dataclasses.asdict(run).items()
    }


def with_settings(run: Run, settings: Mapping[str, Any]) -> Run:
    """Merge dotted `settings` over those of `run`. Raises `ConfigError` as `build` does."""
    return build(merge(flatten(to_dict(run)), settings))


@functools.cache
def setting_types() -> dict[str, Any]:
    """Return the type of each setting by its dotted name."""
    return {f"{section}.{name}": hint for section, cls in _hints(Run).items() for name, hint in _hints(cls).items()}


@functools.cache
def field_docs(cls: type) -> dict[str, str]:
    """Return the docstring below each field of a dataclass, as one line."""
    body = ast.parse(inspect.getsource(cls)).body[0]
    assert isinstance(body, ast.ClassDef)
    found: dict[str, str] = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            assert isinstance(text, ast.Expr), f"{cls}: {field.target.id} has no docstring"
            found[field.target.id] = " ".join(str(ast.literal_eval(text.value)).split())
    return found


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    """Field types, cached."""
    return get_type_hints(cls)


def _checked(name: str, hint: Any, value: Any) -> Any:
    """Check that `value` has the type `hint`, and convert it. Raises `ConfigError`."""
    choices = getattr(hint, "__args__", ())
    texts = [item for item in (value if isinstance(value, list | tuple) else [value]) if isinstance(item, str)]
    # No TOML file can hold it.
    reason = next(filter(None, map(not_utf8, texts)), "")
    require(not reason, f"{name} = {value!r}: {reason}; rename the file, or change the text")
    require(not any("\0" in text for text in texts), f"{name} = {value!r}: has a NUL character; remove it")
    if getattr(hint, "__origin__", None) is Literal:
        require(
            any(value == choice and type(value) is type(choice) for choice in choices),
            f"{name} = {value!r}: use one of {', '.join(map(repr, choices))}",
        )
        return value
    if getattr(hint, "__origin__", None) is tuple:
        require(
            isinstance(value, list | tuple) and all(isinstance(item, str) for item in value),
            f"{name} = {value!r}: must be a list of strings",
        )
        return tuple(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    require(type(value) is hint, f"{name} = {value!r}: must be of type {hint.__name__}")
    return value
