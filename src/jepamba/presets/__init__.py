"""Presets and overlays, as TOML files: `cpu`, `cpu+sigreg-lewm`."""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

from jepamba.config import ConfigError, Run, build, flatten, merge, to_dict


def preset_names() -> list[str]:
    """Return the sorted names of the presets and overlays of the package."""
    return sorted(entry.name.removesuffix(".toml") for entry in _folder() if entry.name.endswith(".toml"))


def preset_settings(name: str) -> dict[str, Any]:
    """Return the dotted settings of the preset or TOML file `name`, with each `+overlay` merged over it.

    Raises `ConfigError` as `preset_layers` does.
    """
    return merge(*preset_layers(name))


def preset_layers(name: str) -> list[dict[str, Any]]:
    """Return the dotted settings of the preset or TOML file `name` and of each `+overlay`, as layers.

    Raises `ConfigError` for an unknown name, an invalid TOML file, and an unknown section.
    """
    # A file name may contain a plus sign.
    names = [name] if Path(name).is_file() else name.split("+")
    return list(map(_layer, names))


def load_preset(name: str) -> Run:
    """Build the validated run of `preset_settings(name)`. Raises `ConfigError` for a refused setting too."""
    return build(preset_settings(name))


def dump_toml(run: Run) -> str:
    """Return all settings of `run` as TOML; `load_preset` reads it back to an equal run."""
    import tomli_w

    return tomli_w.dumps(to_dict(run))


def _folder() -> Any:
    return resources.files(__package__).iterdir()


def _layer(name: str) -> dict[str, Any]:
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise ConfigError(f"{name}: no such file; use a preset ({', '.join(preset_names())}) or a TOML file")
        text = path.read_bytes()
    else:
        entry = resources.files(__package__) / f"{name}.toml"
        if not name or "/" in name or not entry.is_file():
            raise ConfigError(f"unknown preset {name!r}; use one of {', '.join(preset_names())}, or a .toml file")
        text = entry.read_bytes()
    try:
        return flatten(tomllib.loads(text.decode("utf-8-sig")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}: not TOML: {error}") from None
