"""Write docs/configuration.md from the docstrings in jepamba/config/.

Run it after a change: `.venv/bin/python docs/make_configuration.py`. A test compares the page with the docstrings.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from jepamba import config
from jepamba.presets import preset_names

PAGE = Path(__file__).with_name("configuration.md")
MORE = {
    "data": "[data](data.md)",
    "model": "[model](model.md)",
    "jepa": "[objective](objective.md)",
    "quant": "[quantization](quantization.md)",
    "optim": "[training](training.md)",
    "train": "[training](training.md)",
    "eval": "[evaluation](evaluation.md)",
}

HEAD = """# Configuration

<!-- Written by docs/make_configuration.py from the docstrings in src/jepamba/config/. Do not edit by hand. -->

A setting has the same name everywhere: `optim.grad_clip` is the flag `--optim.grad_clip 1.0` of `jepamba train` and
`jepamba study run`, the key `grad_clip` under `[optim]` in a preset or `config.toml`, and the key `"optim.grad_clip"`
in a [plan](studies.md). Settings are merged in order: defaults, preset, overlays, plan, flags. A later budget
(`train.steps`, `train.seconds` or `train.tokens`) replaces all earlier ones.

- In a flag, hyphens and underscores are the same, and `--train.steps=100` is `--train.steps 100`.
- A yes-or-no setting takes `yes`/`no`, `true`/`false`, `on`/`off` or `1`/`0`; `--train.graph` alone means yes,
  `--train.no-graph` no.
- Invalid or unknown settings are refused before anything is read, with one line that names setting, value and remedy.
"""

PRESETS = """## Presets

`jepamba presets` lists the presets and `jepamba presets cpu` prints one with its comments. A TOML file with some of
these keys is a preset too: `jepamba train mine.toml`. An overlay follows a preset: `jepamba train cpu+sigreg-lewm`. The
files:
"""


def page() -> str:
    """The whole page."""
    sections = get_type_hints(config.Run)
    tables = [_section(name, cls) for name, cls in sections.items()]
    return "\n".join([HEAD, *tables, PRESETS, _presets(), ""])


def _section(name: str, cls: Any) -> str:
    docs, hints = config.field_docs(cls), get_type_hints(cls)
    rows = [
        f"| `{name}.{field.name}` | {_default(field.default, hints[field.name])} | {_cell(docs[field.name])} |"
        for field in dataclasses.fields(cls)
    ]
    lead = " ".join((cls.__doc__ or "").split())
    return "\n".join(
        [f"## `[{name}]`\n\n{lead} See {MORE[name]}.\n", "| setting | default | meaning |", "|---|---|---|", *rows, ""]
    )


def _cell(text: str) -> str:
    """`text` with its vertical bars escaped."""
    return text.replace("|", "\\|")


def _default(value: Any, hint: Any) -> str:
    """The default, followed by the choices of a `Literal`."""
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
    """Links to the commented files."""
    return ",\n".join(f"[{name}](../src/jepamba/presets/{name}.toml)" for name in preset_names()) + "."


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
