"""Plans: which configurations a study compares, and with which seeds. A plan is a TOML file:

name = "quick-jepa"
question = "Does the JEPA objective lower the bits per byte?"
preset = "quick"                      # every configuration starts from here
seeds = [1, 2, 3]                     # every configuration runs with each of them
baseline = "off"                      # what the others are compared with
run = [
    { name = "off", settings = { "jepa.weight" = 0.0, "jepa.sigreg_weight" = 0.0 } },
    { name = "on" },
]

[settings]                            # of every configuration
"train.steps" = 200
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any

from jepamba.config import ConfigError, Run, build, merge
from jepamba.errors import UserError
from jepamba.presets import preset_settings

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_KEYS = {"name", "question", "preset", "seeds", "baseline", "run", "settings"}
_RUN_KEYS = {"name", "settings"}


@dataclass(frozen=True)
class Configuration:
    """One line of a plan: a name, which is also its folder, and its settings (dotted keys) over the common ones."""

    name: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Plan:
    """A validated plan: every configuration builds a `Run`."""

    name: str
    question: str
    preset: str
    seeds: tuple[int, ...]
    baseline: str
    settings: Mapping[str, Any]
    """Settings of every configuration, dotted keys."""
    configurations: tuple[Configuration, ...]

    def run(self, configuration: Configuration, seed: int) -> Run:
        """The `Run` of one cell of the plan. Raises `ConfigError` where its settings make no sense."""
        preset = preset_settings(self.preset)
        try:
            return build(merge(preset, self.settings, configuration.settings, {"train.seed": seed}))
        except ConfigError as error:
            raise ConfigError(f"plan {self.name}, configuration {configuration.name}: {error}") from None

    def with_common(self, settings: Mapping[str, Any]) -> Plan:
        """This plan with `settings` merged over the common ones, validated. A configuration's own still win."""
        return parse_plan({**self.to_dict(), "settings": merge(self.settings, settings)}, self.name)

    def to_dict(self) -> dict[str, Any]:
        """The plan as the content of its TOML file."""
        return {
            "name": self.name,
            "question": self.question,
            "preset": self.preset,
            "seeds": list(self.seeds),
            "baseline": self.baseline,
            "run": [{"name": item.name, "settings": dict(item.settings)} for item in self.configurations],
            "settings": dict(self.settings),
        }


def plan_names() -> list[str]:
    """The names of the plans that come with jepamba, sorted."""
    folder = resources.files("jepamba.study") / "plans"
    return sorted(item.name.removesuffix(".toml") for item in folder.iterdir() if item.name.endswith(".toml"))


def load_plan(source: str | Path) -> Plan:
    """The plan in the file `source`, or the shipped plan of that name, with every configuration checked.

    Raises `UserError` for a file that cannot be read, bad TOML, a missing or unknown key, a name that is no folder
    name or is used twice, or a configuration whose settings are refused.
    """
    path = Path(source)
    if path.suffix == ".toml":
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: cannot read this plan ({error})") from None
    elif str(source) in plan_names():
        text = (resources.files("jepamba.study") / "plans" / f"{source}.toml").read_text(encoding="utf-8")
    else:
        close = get_close_matches(str(source), plan_names(), 1)
        hint = f"did you mean {close[0]}?" if close else f"shipped plans: {', '.join(plan_names())}"
        raise UserError(f"no plan is called {str(source)!r}; {hint} (a file of your own ends in .toml)")
    try:
        return parse_plan(tomllib.loads(text), str(source))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{source}: not valid TOML: {error}") from None


def parse_plan(values: Mapping[str, Any], where: str) -> Plan:
    """The plan that `values` (a TOML file's content) describe; `where` names it in messages. Raises `UserError`."""
    _check_keys(values, _KEYS, where)
    seeds = _field(values, "seeds", list, where)
    if not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds) or len(set(seeds)) < len(seeds):
        raise UserError(f"{where}: seeds must be a list of different whole numbers, 0 or more")
    runs = _field(values, "run", list, where)
    configurations = tuple(_configuration(item, where) for item in runs)
    names = [item.name for item in configurations]
    if len({name.lower() for name in names}) < len(names) or len(names) < 2:
        raise UserError(f"{where}: a plan needs at least two runs, each with a name of its own")
    plan = Plan(
        name=_name(_field(values, "name", str, where), where),
        question=_field(values, "question", str, where),
        preset=_field(values, "preset", str, where),
        seeds=tuple(seeds),
        baseline=_field(values, "baseline", str, where),
        settings=dict(_field(values, "settings", dict, where, {})),
        configurations=configurations,
    )
    if plan.baseline not in names:
        raise UserError(f"{where}: baseline = {plan.baseline!r} is none of its runs ({', '.join(names)})")
    for configuration in configurations:
        if "train.seed" in {**plan.settings, **configuration.settings}:
            raise UserError(f"{where}: train.seed is set by seeds, not by settings")
        plan.run(configuration, seeds[0])
    return plan


def _configuration(item: Any, where: str) -> Configuration:
    if not isinstance(item, dict):
        raise UserError(f"{where}: each run is a table with a name and settings")
    _check_keys(item, _RUN_KEYS, f"{where}, run {item.get('name', '?')}")
    name = _name(_field(item, "name", str, where), where)
    return Configuration(name, dict(_field(item, "settings", dict, f"{where}, run {name}", {})))


def _name(name: str, where: str) -> str:
    if not _NAME.fullmatch(name):
        raise UserError(f"{where}: {name!r} is no name for a folder; use letters, digits and . _ + -")
    return name


def _check_keys(values: Mapping[str, Any], known: set[str], where: str) -> None:
    for key in values:
        if key not in known:
            raise UserError(f"{where}: unknown key {key!r}; there are {', '.join(sorted(known))}")


def _field(values: Mapping[str, Any], key: str, kind: type, where: str, default: Any = None) -> Any:
    value = values.get(key, default)
    if value is None:
        raise UserError(f"{where}: {key} is missing")
    if not isinstance(value, kind):
        raise UserError(f"{where}: {key} must be a {kind.__name__}, not {type(value).__name__}")
    return value
