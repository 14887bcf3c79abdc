"""Plans: every shipped plan is valid, and an invalid plan is refused before the first run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tomli_w

from jepamba.config import ConfigError, to_dict
from jepamba.errors import UserError
from jepamba.presets import load_preset
from jepamba.report.page import flat
from jepamba.study.plan import Plan, load_plan, parse_plan, plan_names


def small(**changes: Any) -> dict[str, Any]:
    return {
        "name": "small",
        "question": "Is it?",
        "preset": "quick",
        "seeds": [1, 2],
        "baseline": "a",
        "run": [{"name": "a"}, {"name": "b", "settings": {"jepa.weight": 0.0}}],
        "settings": {"train.steps": 3},
        **changes,
    }


@pytest.mark.parametrize("name", plan_names())
def test_every_shipped_plan_builds_every_configuration(name: str) -> None:
    plan = load_plan(name)
    assert plan.name == name
    assert len(plan.seeds) >= 3
    built = {}
    for item in plan.configurations:
        for seed in plan.seeds:
            run = plan.run(item, seed)
            assert run.train.seed == seed
        built[item.name] = dict(flat(to_dict(run)))
    # Each configuration differs from every other one in its own settings.
    for item in plan.configurations:
        for key, value in item.settings.items():
            assert built[item.name][key] == value
    assert len({tuple(map(str, values.values())) for values in built.values()}) == len(built)


PUBLISHED = {
    "published-mlp": ("model.mlp_every", {1, 2}),
    "published-expand": ("model.expand", {1, 2}),
    "published-n-layer": ("model.n_layer", {8, 10, 12, 13}),
    "published-d-model": ("model.d_model", {512, 576, 640}),
    "published-tie": ("model.tie", {1, 3}),
    "published-jepa-rollout-steps": ("jepa.rollout_steps", {1, 3}),
    "published-lambda": ("jepa.sigreg_weight", {1.0, 5.0}),
    "published-ce": ("jepa.ce_weight", {1.0, 0.5}),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_ablations_vary_one_setting_from_the_published_run(name: str) -> None:
    key, values = PUBLISHED[name]
    plan = load_plan(name)
    base = dict(flat(to_dict(load_preset("submission-bpe"))))
    seen = set()
    for item in plan.configurations:
        built = dict(flat(to_dict(plan.run(item, plan.seeds[0]))))
        assert {k for k in built if built[k] != base[k]} <= {key, "train.seed"}
        seen.add(built[key])
        if item.name == plan.baseline:
            assert built[key] == base[key]
    assert seen == values


def test_the_ablation_that_was_never_run() -> None:
    plan = load_plan("jepa-off")
    weights = {
        item.name: (run.jepa.weight, run.jepa.sigreg_weight)
        for item in plan.configurations
        for run in [plan.run(item, 1)]
    }
    assert weights == {"off": (0.0, 0.0), "sigreg-only": (0.0, 1.0), "on": (1.0, 1.0)}


def test_a_plan_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(tomli_w.dumps(small()))
    plan = load_plan(path)
    assert plan.run(plan.configurations[1], 2).jepa.weight == 0.0
    assert plan.run(plan.configurations[0], 2).train.steps == 3
    assert parse_plan(plan.to_dict(), "again") == plan


def test_common_settings_can_be_changed_and_are_checked() -> None:
    plan = parse_plan(small(), "plan").with_common({"train.steps": 7})
    assert plan.run(plan.configurations[0], 1).train.steps == 7
    with pytest.raises(ConfigError, match=r"configuration a: .*train\.steps"):
        plan.with_common({"train.steps": -1})


def budget(plan: Plan, name: str) -> tuple[int, float]:
    configuration = next(item for item in plan.configurations if item.name == name)
    train = plan.run(configuration, 1).train
    return train.steps, train.seconds


def test_a_plan_with_a_budget_drops_the_preset_s() -> None:
    assert budget(parse_plan(small(preset="cpu", settings={"train.steps": 2000}), "plan"), "a") == (2000, 0.0)
    assert budget(parse_plan(small(preset="cpu", settings={}), "plan"), "a") == (0, 1140.0)


def test_the_budget_of_a_configuration_and_of_a_flag_drops_the_plan_s() -> None:
    runs = [{"name": "a"}, {"name": "b", "settings": {"train.seconds": 60.0}}]
    plan = parse_plan(small(run=runs, settings={"train.steps": 2000}), "plan")
    assert (budget(plan, "a"), budget(plan, "b")) == ((2000, 0.0), (0, 60.0))
    plan = plan.with_common({"train.seconds": 9.0})
    assert (budget(plan, "a"), budget(plan, "b")) == ((0, 9.0), (0, 60.0))
    both = parse_plan(small(settings={"train.steps": 2000, "train.seconds": 9.0}), "plan")
    assert budget(both, "a") == (2000, 9.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": []}, "seeds"),
        ({"seeds": [1, 1]}, "seeds"),
        ({"seeds": [1.5]}, "seeds"),
        ({"seeds": [True]}, "seeds"),
        ({"baseline": "c"}, "baseline = 'c'"),
        ({"run": [{"name": "a"}]}, "at least two runs"),
        ({"run": [{"name": "a"}, {"name": "A"}]}, "different names"),
        ({"run": [{"name": "a"}, {"name": "../b"}]}, "not a valid folder name"),
        ({"run": [{"name": "a"}, {"name": "b", "setings": {}}]}, "unknown key 'setings'"),
        ({"run": [{"name": "a"}, {"name": "b", "settings": {"jepa.wieght": 1}}]}, "unknown setting jepa.wieght"),
        ({"run": [{"name": "a"}, {"name": "b", "settings": {"model.tie": 9}}]}, "configuration b: .*model.tie = 9"),
        ({"settings": {"train.seed": 1}}, "train.seed"),
        ({"preset": "quickly"}, "quickly"),
        ({"question": 3}, "question must be a str"),
        ({"extra": 1}, "unknown key 'extra'"),
        ({"alpha": 0.0}, "alpha = 0.0 must lie between"),
        ({"alpha": 0.95}, "a level as 0.05, not a confidence as 0.95"),
    ],
)
def test_a_bad_plan_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse_plan(small(**changes), "plan.toml")
    assert "\n" not in str(caught.value)


LONGER = {"name": "a-longer", "settings": {"train.steps": 5}}


def test_a_time_baseline_is_the_baseline_with_more_steps() -> None:
    plan = parse_plan(small(run=[*small()["run"], LONGER], time_baseline="a-longer", rule="r", cost="c"), "plan")
    assert (plan.time_baseline, plan.rule, plan.cost) == ("a-longer", "r", "c")
    assert parse_plan(plan.to_dict(), "again") == plan
    assert plan.first_seeds(1).seeds == (1,)
    for settings, message in (
        ({"train.steps": 3}, "must have more train.steps than 'a' and no other difference$"),
        ({"train.seconds": 9.0}, "must have more train.steps than 'a'"),
        ({"train.steps": 5, "jepa.weight": 0.5}, r"no other difference, but it differs in jepa\.weight"),
    ):
        runs = [*small()["run"], {"name": "a-longer", "settings": settings}]
        with pytest.raises(UserError, match=message):
            parse_plan(small(run=runs, time_baseline="a-longer"), "plan")
    with pytest.raises(UserError, match="time_baseline = 'c' is not one of its runs"):
        parse_plan(small(time_baseline="c"), "plan")


def test_a_plan_that_is_not_there_is_named_with_its_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean quick-jepa"):
        load_plan("quik-jepa")
    with pytest.raises(UserError, match=r"none\.toml"):
        load_plan(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("name = ")
    with pytest.raises(UserError, match="not valid TOML"):
        load_plan(tmp_path / "bad.toml")


def test_a_missing_key_is_named() -> None:
    values = small()
    del values["preset"]
    with pytest.raises(UserError, match="preset is missing"):
        parse_plan(values, "plan")
