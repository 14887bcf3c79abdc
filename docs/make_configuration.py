"""Writes docs/configuration.md from the docstrings in jepamba/config/ and from the shipped presets.

Run it after a change of either: `.venv/bin/python docs/make_configuration.py`. A test compares the page with both.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from jepamba import config
from jepamba.presets import load_preset, preset_names, preset_settings

PAGE = Path(__file__).with_name("configuration.md")
OVERLAYS_LIE_OVER = "cpu"
"""An overlay is no run by itself: this preset is put under it to read it."""

MORE = {
    "data": "[data](data.md)",
    "model": "[the model](model.md)",
    "jepa": "[the objective](objective.md)",
    "quant": "[quantization](quantization.md)",
    "optim": "[training](training.md)",
    "train": "[training](training.md)",
    "eval": "[evaluation](evaluation.md)",
}

HEAD = """# Every setting

<!-- Written by docs/make_configuration.py from the docstrings in src/jepamba/config/. Do not edit by hand. -->

A setting has a room and a name, and the same name everywhere: `optim.grad_clip` is the flag `--optim.grad_clip 1.0` of
`jepamba train` and `jepamba study run`, the key `clip` under `[optim]` in a preset or in a run's `config.toml`, and
the key `"optim.grad_clip"` in a [plan](studies.md). What a preset does not name has the default of this page; a flag is
stronger than a preset. Preset, overlays, plan and flags are layers: the last one that names a setting counts. A layer
that sets a budget (`train.steps` or `train.seconds`) drops the budgets of the layers before it.

- Hyphens and underscores are the same in a flag, and `--train.steps=100` is `--train.steps 100`.
- A yes-or-no setting takes `yes`/`no`, `true`/`false`, `on`/`off` or `1`/`0`; `--train.compile` alone means yes,
  `--train.no-compile` no.
- Settings that make no sense, alone or together, are refused before anything is read or built, with a line that names
  the setting, its value and the remedy. Unknown settings are refused too, with the nearest known name.

`jepamba presets` lists the presets, `jepamba presets cpu` prints one with its comments, and a file of your own with
some of these keys is a preset as well: `jepamba train mine.toml`. A name may be followed by overlays, which change a
few settings of it: `jepamba train cpu+sigreg-lewm`.
"""

PRESETS_HEAD = """## What the presets choose

Only settings that some preset changes. An empty cell is the default; an overlay's column has what it lays over any
preset.
"""


def page() -> str:
    """The whole page."""
    rooms = get_type_hints(config.Run)
    tables = [_room(name, cls) for name, cls in rooms.items()]
    return "\n".join([HEAD, *tables, PRESETS_HEAD, _presets(), ""])


def _room(name: str, cls: Any) -> str:
    texts, hints = config.field_docs(cls), get_type_hints(cls)
    rows = [
        f"| `{name}.{field.name}` | {_type(hints[field.name])} | {_value(field.default)} | {_cell(texts[field.name])} |"
        for field in _fields(cls)
    ]
    lead = " ".join((cls.__doc__ or "").split())
    return "\n".join(
        [f"## `[{name}]`\n\n{lead}\n", "| setting | type | default | what |", "|---|---|---|---|", *rows, ""]
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _fields(cls: Any) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(cls)


def _type(hint: Any) -> str:
    if get_origin(hint) is tuple:
        return "texts"
    if get_args(hint):
        return ", ".join(f"`{choice}`" for choice in get_args(hint))
    return {bool: "yes or no", int: "whole number", float: "number", str: "text"}[hint]


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(f"`{item!r}`" for item in value)
    return "empty" if value == "" else f"`{value}`"


def _presets() -> str:
    """Settings by presets: their values where they are not the default."""
    plain: dict[str, Any] = {
        f"{room}.{f.name}": f.default for room, cls in get_type_hints(config.Run).items() for f in _fields(cls)
    }
    plain["eval.prompts"] = list(plain["eval.prompts"])
    columns: dict[str, dict[str, Any]] = {}
    for name in preset_names():
        if name.startswith("sigreg-"):
            laid = config.flatten(config.to_dict(load_preset(f"{OVERLAYS_LIE_OVER}+{name}")))
            columns[f"+{name}"] = {key: laid[key] for key in preset_settings(name)}
        else:
            run = config.flatten(config.to_dict(load_preset(name)))
            columns[name] = {key: value for key, value in run.items() if value != plain[key]}
    used = [key for key in plain if any(key in values for values in columns.values())]
    lines = [f"| setting | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for key in used:
        cells = [_value(values[key]) if key in values else "" for values in columns.values()]
        lines.append(f"| `{key}` | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
