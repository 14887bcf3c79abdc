"""Named runs as TOML files, and overlays that change a few settings of one: `cpu`, `cpu+sigreg-lewm`."""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

from jepamba.config import ConfigError, Run, from_dict, to_dict


def preset_names() -> list[str]:
    """The presets and overlays that ship with the package, sorted."""
    return sorted(entry.name.removesuffix(".toml") for entry in _folder() if entry.name.endswith(".toml"))


def load_preset(name: str) -> Run:
    """The run called `name`: a shipped preset or the path of a TOML file, each `+overlay` laid over it in turn.

    Raises `ConfigError` for an unknown name, a file that is no TOML, or a setting that is refused.
    """
    # A file's own name may hold a plus sign.
    base, *overlays = [name] if Path(name).is_file() else name.split("+")
    values: dict[str, Any] = _load(base)
    for overlay in overlays:
        for room, settings in _load(overlay).items():
            merged = values.setdefault(room, {})
            if not isinstance(settings, dict) or not isinstance(merged, dict):
                raise ConfigError(f"{overlay}: [{room}] must be a table of settings")
            merged.update(settings)
    return from_dict(values)


def dump_toml(run: Run) -> str:
    """`run` with every setting written out, as TOML that `load_preset` reads back to an equal run."""
    import tomli_w

    return tomli_w.dumps(to_dict(run))


def _folder() -> Any:
    return resources.files(__package__).iterdir()


def _load(name: str) -> dict[str, Any]:
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise ConfigError(f"{name}: no such file; give a preset ({', '.join(preset_names())}) or a TOML file")
        text = path.read_bytes()
    else:
        entry = resources.files(__package__) / f"{name}.toml"
        if not name or "/" in name or not entry.is_file():
            raise ConfigError(f"unknown preset {name!r}; there are {', '.join(preset_names())}, or give a .toml file")
        text = entry.read_bytes()
    try:
        return tomllib.loads(text.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}: not TOML: {error}") from None
