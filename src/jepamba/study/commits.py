"""Keeps the names on the hub of a study at one commit, so that all its runs read the same data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from jepamba.config import flatten, to_dict
from jepamba.hub_names import HUB
from jepamba.study.plan import Plan, load_plan

_ON_HUB = ("data.train", "data.val", "train.init_from")
"""The settings that may name something on the hub."""


def with_commits(plan: Plan, out: Path) -> Plan:
    """Return `plan` with each name on the hub at a commit: the one that the study in `out` has, or the present one."""
    before = load_plan(out / "plan.toml") if (out / "plan.toml").exists() else plan
    old = {item.name: item.settings for item in before.configurations}
    base = flatten(to_dict(plan.base()))
    common = {name: base[name] for name in _ON_HUB if base[name].startswith(HUB)}
    return replace(
        plan,
        settings=_pinned({**plan.settings, **common}, before.settings),
        configurations=tuple(
            replace(c, settings=_pinned(c.settings, old.get(c.name, {}))) for c in plan.configurations
        ),
    )


def _pinned(settings: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    pinned = dict(settings)
    for name in _ON_HUB:
        value, old = str(settings.get(name, "")), str(before.get(name, ""))
        if not value.startswith(HUB):
            continue
        if old != value and re.sub(r"@[^/:]+", "", old, count=1) == value:
            pinned[name] = old
            continue
        # A study of local files needs neither.
        from jepamba.artifact.locate import pinned_model
        from jepamba.data.hub_text import pinned as pinned_text

        split = "val" if name == "data.val" else "train"
        pinned[name] = pinned_model(value) if name == "train.init_from" else pinned_text(value, split)
    return pinned
