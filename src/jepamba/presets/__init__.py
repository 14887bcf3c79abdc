"""Named runs as TOML files, and overlays that change a few settings of one: `cpu`, `cpu+sigreg-lewm`."""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

from jepamba.config import ConfigError, Run, build, flatten, merge, to_dict


def preset_names() -> list[str]:
    """The presets and overlays that ship with the package, sorted."""
    return sorted(entry.name.removesuffix(".toml") for entry in _folder() if entry.name.endswith(".toml"))


def preset_settings(name: str) -> dict[str, Any]:
    """The dotted settings of a shipped preset or of the TOML file `name`, each `+overlay` merged over it in turn.

    Raises `ConfigError` for an unknown name, a file that is not TOML, or a section that does not exist.
    """
    # A file's own name may hold a plus sign.
    names = [name] if Path(name).is_file() else name.split("+")
    return merge(*map(_layer, names))


def load_preset(name: str) -> Run:
    """The validated run of `preset_settings(name)`. Raises `ConfigError` for a setting that is refused, too."""
    return build(preset_settings(name))


def dump_toml(run: Run) -> str:
    """`run` with every setting written out, as TOML that `load_preset` reads back to an equal run."""
    import tomli_w

    return tomli_w.dumps(to_dict(run))


def _folder() -> Any:
    return resources.files(__package__).iterdir()


def _layer(name: str) -> dict[str, Any]:
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
        return flatten(tomllib.loads(text.decode()))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}: not TOML: {error}") from None
