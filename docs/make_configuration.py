"""Writes docs/configuration.md from the docstrings in jepamba/config.py and from the shipped presets.

Run it after a change of either: `.venv/bin/python docs/make_configuration.py`. A test compares the page with both.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from jepamba import config
from jepamba.presets import load_preset, preset_names

PAGE = Path(__file__).with_name("configuration.md")
UNDER_OVERLAYS = "cpu"
"""An overlay is not a complete run. This preset is put under it to read it."""

MORE = {
    "data": "[data](data.md)",
    "model": "[the model](model.md)",
    "jepa": "[the objective](objective.md)",
    "quant": "[quantization](quantization.md)",
    "optim": "[training](training.md)",
    "train": "[training](training.md)",
    "eval": "[evaluation](evaluation.md)",
}

HEAD = """# Configuration

<!-- Written by docs/make_configuration.py from the docstrings in src/jepamba/config.py. Do not edit by hand. -->

A setting has a section and a name, and the same name everywhere: `optim.grad_clip` is the flag `--optim.grad_clip 1.0` of
`jepamba train` and `jepamba study run`, the key `clip` under `[optim]` in a preset or `config.toml`, and the key
`"optim.grad_clip"` in a [plan](studies.md). Layers are merged in order: defaults, preset, overlays, plan, flags. A later
layer that names a budget (`train.steps` or `train.seconds`) replaces the budget of an earlier one.

- Hyphens and underscores are the same in a flag, and `--train.steps=100` is `--train.steps 100`.
- A yes-or-no setting takes `yes`/`no`, `true`/`false`, `on`/`off` or `1`/`0`; `--train.compile` alone means yes,
  `--train.no-compile` no.
- Invalid or unknown settings are refused before anything is read or built, with one line that names the setting, its
  value and the remedy.
"""

PRESETS_HEAD = """## Presets

`jepamba presets` lists the presets and `jepamba presets cpu` prints one with its comments. A TOML file with some of
these keys is a preset too: `jepamba train mine.toml`. Overlays follow a name: `jepamba train cpu+sigreg-lewm`. Here is
what each preset sets differently from the defaults, and what each overlay sets.
"""


def page() -> str:
    """The whole page."""
    sections = get_type_hints(config.Run)
    tables = [_section(name, cls) for name, cls in sections.items()]
    return "\n".join([HEAD, *tables, PRESETS_HEAD, _presets(), ""])


def _section(name: str, cls: Any) -> str:
    texts, hints = _docstrings(cls), get_type_hints(cls)
    rows = [
        f"| `{name}.{field.name}` | {_default(field.default, hints[field.name])} | {texts[field.name]} |"
        for field in _fields(cls)
    ]
    lead = _plain(inspect.cleandoc(cls.__doc__ or ""))
    return "\n".join([f"## `[{name}]`\n\n{lead}\n", "| setting | default | what |", "|---|---|---|", *rows, ""])


def _fields(cls: Any) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(cls)


def _docstrings(cls: type) -> dict[str, str]:
    """The string below each field of a dataclass, on one line and safe in a table's cell."""
    body = ast.parse(inspect.getsource(cls)).body[0]
    assert isinstance(body, ast.ClassDef)
    found: dict[str, str] = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            assert isinstance(text, ast.Expr), f"{cls}: {field.target.id} has no docstring"
            assert isinstance(text.value, ast.Constant), f"{cls}: {field.target.id} has no docstring"
            found[field.target.id] = _plain(str(text.value.value)).replace("|", "\\|")
    return found


def _plain(text: str) -> str:
    """`text` on one line, without its pointers into the specification, which is not part of the manual."""
    return re.sub(r" \(spec section [^)]*\)", "", " ".join(text.split()))


def _default(value: Any, hint: Any) -> str:
    """The default, and after a colon all that may be chosen."""
    if get_origin(hint) is tuple or not get_args(hint):
        return _value(value)
    choices = ", ".join(f"`{choice}`" for choice in get_args(hint) if choice != "")
    return f"{_value(value)}: {choices}"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(f"`{item!r}`" for item in value) or "empty"
    return "empty" if value == "" else f"`{value}`"


def _presets() -> str:
    """A line for each preset and overlay: what it sets differently from the defaults."""
    plain: dict[str, Any] = {
        f"{section}.{f.name}": f.default for section, cls in get_type_hints(config.Run).items() for f in _fields(cls)
    }
    lines = []
    for name in preset_names():
        if name.startswith("sigreg-"):
            whole = _flat(load_preset(f"{UNDER_OVERLAYS}+{name}"))
            values = {key: whole[key] for key in _keys_of_overlay(name)}
        else:
            values = {key: value for key, value in _flat(load_preset(name)).items() if value != _listed(plain[key])}
        settings = ", ".join(f"`{key} = {_value(value).strip('`')}`" for key, value in values.items())
        lines.append(f"- **{'+' if name.startswith('sigreg-') else ''}{name}**: {settings}")
    return "\n".join(lines)


def _listed(value: Any) -> Any:
    """A default as TOML has it: lists for tuples."""
    return list(value) if isinstance(value, tuple) else value


def _keys_of_overlay(name: str) -> list[str]:
    values = tomllib.loads((resources.files("jepamba.presets") / f"{name}.toml").read_text())
    return [f"{section}.{key}" for section, keys in values.items() for key in keys]


def _flat(run: config.Run) -> dict[str, Any]:
    return {f"{section}.{key}": value for section, keys in config.to_dict(run).items() for key, value in keys.items()}


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
