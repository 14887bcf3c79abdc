"""Plans: the configurations and the seeds of a study. A plan is a TOML file:

name = "quick-jepa"
question = "Does the JEPA objective lower the bits per byte?"
preset = "quick"                      # the base of every configuration
seeds = [1, 2, 3]                     # each configuration runs with each seed
baseline = "off"                      # the configuration to compare with
time_baseline = "off-longer"          # optional: the baseline with more steps, for the comparison at equal time
rule = "At n = 10 …"                  # optional: how the result will be judged, written before the runs
alpha = 0.05                          # optional: level of the t test in the verdicts, as 0.05 / 3 for three tests
cost = "0.5 GPU-hours: …"             # optional: what the runs take
run = [
    { name = "off", settings = { "jepa.weight" = 0.0, "jepa.sigreg_weight" = 0.0 } },
    { name = "off-longer", settings = { "jepa.weight" = 0.0, "jepa.sigreg_weight" = 0.0, "train.steps" = 260 } },
    { name = "on" },
]

[settings]                            # common to all configurations
"train.steps" = 200
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any

from jepamba.config import ConfigError, Run, build, flatten, merge, to_dict
from jepamba.errors import UserError
from jepamba.presets import preset_settings

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_OPTIONAL = ("time_baseline", "rule", "cost")
_KEYS = {"name", "question", "preset", "seeds", "baseline", "alpha", "run", "settings", *_OPTIONAL}
_ALPHA = 0.05
"""Level of the verdicts unless the plan has another one."""
_RUN_KEYS = {"name", "settings"}


@dataclass(frozen=True)
class Configuration:
    """A configuration of a plan: its name, which is also its folder, and its own settings by dotted name."""

    name: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Plan:
    """A validated plan: every configuration has valid settings."""

    name: str
    question: str
    preset: str
    seeds: tuple[int, ...]
    baseline: str
    settings: Mapping[str, Any]
    """Common settings of all configurations, by dotted name."""
    configurations: tuple[Configuration, ...]
    time_baseline: str = ""
    """The configuration that is the baseline with more steps; empty: none. See `compare`."""
    rule: str = ""
    """How the result will be judged."""
    cost: str = ""
    """What the runs take."""
    alpha: float = _ALPHA
    """Level of the two-sided t test that gives the verdicts."""

    def run(self, configuration: Configuration, seed: int) -> Run:
        """Return the settings of one run. Raises `ConfigError` if they are invalid."""
        preset = preset_settings(self.preset)
        try:
            return build(merge(preset, self.settings, configuration.settings, {"train.seed": seed}))
        except ConfigError as error:
            raise ConfigError(f"plan {self.name}, configuration {configuration.name}: {error}") from None

    def base(self) -> Run:
        """Return the preset with the common settings. Raises `ConfigError` if they are invalid."""
        return build(merge(preset_settings(self.preset), self.settings))

    def with_common(self, settings: Mapping[str, Any]) -> Plan:
        """Return this plan with `settings` merged over the common ones. Settings of a configuration override both."""
        return parse_plan({**self.to_dict(), "settings": merge(self.settings, settings)}, self.name)

    def first_seeds(self, count: int) -> Plan:
        """Return this plan with its first `count` seeds only."""
        return replace(self, seeds=self.seeds[:count])

    def to_dict(self) -> dict[str, Any]:
        """Return the plan in the form of its TOML file."""
        return {
            "name": self.name,
            "question": self.question,
            "preset": self.preset,
            "seeds": list(self.seeds),
            "baseline": self.baseline,
            **{key: value for key in _OPTIONAL if (value := getattr(self, key))},
            **({"alpha": self.alpha} if self.alpha != _ALPHA else {}),
            "run": [{"name": item.name, "settings": dict(item.settings)} for item in self.configurations],
            "settings": dict(self.settings),
        }


def plan_names() -> list[str]:
    """Return the sorted names of the plans in the package."""
    folder = resources.files("jepamba.study") / "plans"
    return sorted(item.name.removesuffix(".toml") for item in folder.iterdir() if item.name.endswith(".toml"))


def load_plan(source: str | Path) -> Plan:
    """Load a plan and validate every configuration.

    Arguments: `source`, the path of a .toml file or the name of a shipped plan.
    Raises: `UserError` for an unreadable file, invalid TOML, a missing or unknown key, an invalid or repeated name, or
    invalid settings.
    """
    path = Path(source)
    if path.suffix == ".toml":
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: cannot read the plan ({error})") from None
    elif str(source) in plan_names():
        text = (resources.files("jepamba.study") / "plans" / f"{source}.toml").read_text(encoding="utf-8")
    else:
        close = get_close_matches(str(source), plan_names(), 1)
        hint = f"did you mean {close[0]}?" if close else f"shipped plans: {', '.join(plan_names())}"
        raise UserError(f"unknown plan {str(source)!r}; {hint} (the name of a plan file ends in .toml)")
    try:
        return parse_plan(tomllib.loads(text), str(source))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{source}: not valid TOML: {error}") from None


def parse_plan(values: Mapping[str, Any], where: str) -> Plan:
    """Build a plan from the content of a TOML file.

    Arguments: `where`, the name of the plan in error messages.
    Raises: `UserError` for an invalid plan.
    """
    _check_keys(values, _KEYS, where)
    seeds = _field(values, "seeds", list, where)
    if not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds) or len(set(seeds)) < len(seeds):
        raise UserError(f"{where}: seeds must be a list of distinct integers, 0 or larger")
    runs = _field(values, "run", list, where)
    configurations = tuple(_configuration(item, where) for item in runs)
    names = [item.name for item in configurations]
    if len({name.lower() for name in names}) < len(names) or len(names) < 2:
        raise UserError(f"{where}: a plan needs at least two runs with different names")
    alpha = _field(values, "alpha", float, where, _ALPHA)
    if not 1e-9 <= alpha <= 0.5:
        raise UserError(
            f"{where}: alpha = {alpha} must lie between 1e-9 and 0.5: a level as 0.05, not a confidence as 0.95"
        )
    plan = Plan(
        name=_name(_field(values, "name", str, where), where),
        question=_field(values, "question", str, where),
        preset=_field(values, "preset", str, where),
        seeds=tuple(seeds),
        baseline=_field(values, "baseline", str, where),
        settings=dict(_field(values, "settings", dict, where, {})),
        configurations=configurations,
        alpha=alpha,
        **{key: _field(values, key, str, where, "") for key in _OPTIONAL},
    )
    for key, name in {"baseline": plan.baseline, "time_baseline": plan.time_baseline or plan.baseline}.items():
        if name not in names:
            raise UserError(f"{where}: {key} = {name!r} is not one of its runs ({', '.join(names)})")
    if plan.time_baseline:
        _check_time_baseline(plan, where)
    for configuration in configurations:
        if "train.seed" in {**plan.settings, **configuration.settings}:
            raise UserError(f"{where}: train.seed is not allowed in settings; use seeds")
        plan.run(configuration, seeds[0])
    return plan


def _configuration(item: Any, where: str) -> Configuration:
    if not isinstance(item, dict):
        raise UserError(f"{where}: each run must be a table with a name and settings")
    _check_keys(item, _RUN_KEYS, f"{where}, run {item.get('name', '?')}")
    name = _name(_field(item, "name", str, where), where)
    return Configuration(name, dict(_field(item, "settings", dict, f"{where}, run {name}", {})))


def _check_time_baseline(plan: Plan, where: str) -> None:
    """Raise `UserError` unless the time baseline is the baseline with more steps and nothing else changed."""
    by_name = {item.name: flatten(to_dict(plan.run(item, plan.seeds[0]))) for item in plan.configurations}
    short, long = by_name[plan.baseline], by_name[plan.time_baseline]
    others = [key for key in short if short[key] != long[key] and key != "train.steps"]
    if others or not 0 < short["train.steps"] < long["train.steps"]:
        raise UserError(
            f"{where}: time_baseline = {plan.time_baseline!r} must have more train.steps than {plan.baseline!r} and "
            f"no other difference{f', but it differs in {others[0]}' if others else ''}"
        )


def _name(name: str, where: str) -> str:
    if not _NAME.fullmatch(name):
        raise UserError(f"{where}: {name!r} is not a valid folder name; use letters, digits and . _ + -")
    return name


def _check_keys(values: Mapping[str, Any], known: set[str], where: str) -> None:
    for key in values:
        if key not in known:
            raise UserError(f"{where}: unknown key {key!r}; known keys: {', '.join(sorted(known))}")


def _field(values: Mapping[str, Any], key: str, kind: type, where: str, default: Any = None) -> Any:
    value = values.get(key, default)
    if value is None:
        raise UserError(f"{where}: {key} is missing")
    if not isinstance(value, kind):
        raise UserError(f"{where}: {key} must be a {kind.__name__}, not {type(value).__name__}")
    return value
