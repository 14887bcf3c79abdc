"""The plans of the JEPA study: what the dial gives all arms on a GPU, and a few steps of every arm at a tiny size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from jepamba.config import Run, flatten, to_dict
from jepamba.data import Corpus, Tokens
from jepamba.presets import load_preset
from jepamba.study.plan import Plan, load_plan, parse_plan, plan_names
from jepamba.text import ByteTokenizer
from jepamba.train.device import choose_device
from jepamba.train.dial import Circumstances, choose, resolve_vocabulary
from jepamba.train.state import TrainState
from jepamba.train.step import Trainer
from tiny import SIZES, TOPICS

PLANS = [name for name in plan_names() if name == "best-bytes" or (name.startswith("jepa-") and name != "jepa-off")]
OWN_FORMS = ("jepa-forms-20", "jepa-nextlat-20", "jepa-nextlat-bytes-20", "jepa-h-weights-20")
"""Plans of other forms than the published one."""
CELLS = {
    "off": (0.0, 0.0),
    "both": (1.0, 1.0),
    "off-longer": (0.0, 0.0),
    "sigreg-only": (0.0, 1.0),
    "both-0.1": (0.1, 0.1),
}
"""Weights of the prediction and of SIGReg."""
TINY = SIZES | {
    "model.chunk_size": 16,
    "optim.ghost_steps": 0,
    "train.tokens_per_step": 128,
    "train.tokens_per_micro": 64,
    "train.steps": 2,
    "train.device": "cpu",
}
FORMS = {"model.n_layer": 6, "data.seq_len": 128, "train.tokens_per_step": 512, "train.tokens_per_micro": 256}
"""Latents of inner blocks, targets of 64 tokens and two windows for SIGReg per timestep need them."""


def test_all_required_cells_are_planned() -> None:
    required = [f"jepa-{text}-{seconds}" for text in ("bpe", "bytes") for seconds in (20, 60, 240)]
    for name in [*required, "jepa-published-60", "jepa-many-epochs"]:
        plan = load_plan(name)
        weights = {item.name: (run.jepa.weight, run.jepa.sigreg_weight) for item, run in runs(plan)}
        assert weights == CELLS
        assert plan.time_baseline == "off-longer"
    for name in PLANS:
        assert load_plan(name).rule
        assert "GPU-hours" in load_plan(name).cost


def runs(plan: Plan) -> list[tuple[Any, Any]]:
    return [(item, plan.run(item, plan.seeds[0])) for item in plan.configurations]


def test_each_form_is_the_light_objective_with_its_own_settings_changed() -> None:
    """Its baselines are those of jepa-bpe-20 in every setting but the steps of the longer one."""
    plan, before = load_plan("jepa-forms-20"), load_plan("jepa-bpe-20")
    forms = {item.name: flatten(to_dict(run)) for item, run in runs(plan)}
    known = {item.name: flatten(to_dict(run)) for item, run in runs(before)}
    assert forms.pop("off") == known["off"]
    assert forms.pop("off-longer") | {"train.steps": 0} == known["off-longer"] | {"train.steps": 0}
    for item in plan.configurations:
        if item.name in forms:
            changed = {key for key, value in forms[item.name].items() if value != forms["light"][key]}
            assert changed == {*item.settings}
    assert (forms["light"]["jepa.weight"], forms["light"]["jepa.sigreg_pool"]) == (0.1, "positions")


def test_the_small_plan_has_the_same_forms() -> None:
    """But for the depth of the latents, and for four that the small one led to."""
    large, small = (load_plan(name) for name in ("jepa-forms-20", "quick-jepa-forms"))
    forms, small_forms = ({item.name: item.settings for item in plan.configurations} for plan in (large, small))
    arms = set(small_forms)
    assert arms - set(forms) == {"layer-2"}
    added = {"slowness", "prediction-of-h", "cheap-prediction-of-h", "cheap-prediction-of-h-1"}
    assert set(forms) - arms == {"layer-5", *added}
    for name in arms - {"off", "off-longer", "layer-2"}:
        assert small_forms[name] == forms[name]
    built = {item.name: flatten(to_dict(run)) for item, run in runs(small)}
    for item in small.configurations:
        changed = {key for key, value in built[item.name].items() if value != built["light"][key]}
        assert changed == {*item.settings}


@pytest.mark.parametrize("name", [name for name in PLANS if name not in OWN_FORMS])
def test_the_published_objective_is_in_every_arm(name: str) -> None:
    """Whatever an arm does not set itself, a latent term has the published form."""
    published = flatten(to_dict(load_preset("submission-bpe")))
    for item, run in runs(load_plan(name)):
        if run.jepa.active:
            settings = flatten(to_dict(run))
            changed = {key for key in published if key.startswith("jepa.") and settings[key] != published[key]}
            own = {*item.settings, "jepa.weight", "jepa.sigreg_weight"}
            assert changed <= own | ({"jepa.sigreg_projections"} if "bytes" in name else set())


@pytest.mark.parametrize(
    ("name", "text_tokens", "size"),
    [
        ("jepa-bpe-20", 43_897_222, (640, 6, 64, 1024, 32768)),
        ("jepa-bpe-60", 43_897_222, (640, 6, 64, 1024, 32768)),
        ("jepa-forms-20", 43_897_222, (640, 6, 64, 1024, 32768)),
        ("jepa-h-weights-20", 43_897_222, (640, 6, 64, 1024, 32768)),
        ("jepa-nextlat-bytes-20", 159_940_718, (640, 6, 64, 4096, 65536)),
        ("jepa-nextlat-20", 43_897_222, (640, 6, 64, 1024, 32768)),
        ("jepa-bpe-60-more", 43_897_222, (640, 6, 64, 1024, 32768)),
        ("jepa-bpe-240", 43_897_222, (640, 8, 128, 1024, 32768)),
        ("jepa-bytes-20", 159_940_718, (640, 6, 64, 4096, 65536)),
        ("jepa-bytes-60", 159_940_718, (640, 6, 64, 4096, 65536)),
        ("jepa-bytes-240", 159_940_718, (640, 8, 128, 4096, 65536)),
        ("best-bytes", 159_940_718, (640, 6, 64, 4096, 65536)),
        ("jepa-many-epochs", 4_400_000, (384, 8, 64, 512, 32768)),
        ("jepa-published-60", 43_897_222, (640, 10, 64, 1024, 524288)),
    ],
)
def test_the_dial_chooses_once_for_all_arms_what_the_plan_says(
    name: str, text_tokens: int, size: tuple[int, ...]
) -> None:
    plan = load_plan(name)
    base, choices = resolve_vocabulary(plan.base())
    base = replace(base, model=replace(base.model, vocab_size=256 if "bytes" in name else 8192))
    choices += choose(base, Circumstances(text_tokens, on_gpu=True)) if base.train.dial else []
    chosen = plan.with_common({choice.name: choice.value for choice in choices})
    own = {key for item in plan.configurations for key in item.settings}
    for item, run in runs(chosen):
        assert not run.train.dial
        if name != "best-bytes" or item.name == "base":
            model, train = run.model, run.train
            found = (model.d_model, model.n_layer, model.d_state, run.data.seq_len, train.tokens_per_step)
            assert found == size
    arms = [flatten(to_dict(run)) for _, run in runs(chosen)]
    assert {key for arm in arms for key in arm if arm[key] != arms[0][key]} <= own


def tiny(plan: Plan) -> Plan:
    """`plan` with the sizes of `TINY`, also where an arm has a size of its own."""
    values = plan.to_dict()

    def shrunk(settings: Mapping[str, Any]) -> dict[str, Any]:
        return {key: TINY.get(key, value) for key, value in settings.items()}

    longer = {plan.time_baseline: {"train.steps": 3}}
    arms = [{"name": a["name"], "settings": shrunk(a["settings"]) | longer.get(a["name"], {})} for a in values["run"]]
    base, choices = resolve_vocabulary(plan.base())
    choices += choose(base, Circumstances(10_000, on_gpu=True))
    dialled = {choice.name: choice.value for choice in choices}
    settings = {key: value for key, value in values["settings"].items() if key != "data.tokenizer"}
    sizes = TINY | (FORMS if plan.name == "jepa-forms-20" else {})
    return parse_plan(values | {"run": arms, "settings": dialled | settings | sizes}, plan.name)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    tokenizer = ByteTokenizer()
    texts = TOPICS[:20]
    ids = np.concatenate([np.array([0, *tokenizer.encode(text[:300])], dtype=np.uint16) for text in texts])
    return Corpus(Tokens([ids], tokenizer), Tokens([ids[:500]], tokenizer), tokenizer, 500)


@pytest.mark.parametrize("names", [["jepa-bpe-20", "jepa-forms-20"], pytest.param(PLANS, marks=pytest.mark.slow)])
def test_every_arm_takes_steps_and_only_its_own_terms_are_not_zero(corpus: Corpus, names: list[str]) -> None:
    seen = set()
    for name in names:
        for item, run in runs(tiny(load_plan(name))):
            assert run.train.steps == (3 if item.name == "off-longer" else 2)
            # Many arms are the same at this size.
            if run not in seen:
                seen.add(run)
                record = last_step(replace(run, model=replace(run.model, vocab_size=256)), corpus)
                assert 0 < record["ce"] < 10
                on = run.jepa.until > 0.5  # the last step begins at half of training
                assert (record["jepa"] > 0) == (on and run.jepa.weight > 0), (name, item.name)
                assert (record["sigreg"] > 0) == (on and run.jepa.sigreg_weight > 0), (name, item.name)
    assert len(seen) > len(CELLS) + 3


def last_step(run: Run, corpus: Corpus) -> dict[str, float]:
    trainer = Trainer(TrainState(run, corpus, choose_device(run.train)))
    for step in range(run.train.steps):
        record = trainer.train_step(step / run.train.steps)
    return record
