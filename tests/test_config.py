"""Settings: every one that makes no sense is refused by name, value and remedy, and the rest survive a round trip."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jepamba.config import (
    ConfigError,
    Jepa,
    Model,
    Run,
    Train,
    build,
    from_dict,
    merge,
    setting_types,
    to_dict,
    with_settings,
)
from jepamba.config.other_names import ABSENT, OTHER_NAMES
from jepamba.errors import UserError

INF, NAN = float("inf"), float("nan")

REFUSED: list[tuple[dict[str, Any], str]] = [
    # settings, what the message says of the remedy; the last setting is the one that is refused
    ({"data.holdout": 0.0}, "between 0 and 1"),
    ({"data.holdout": 1.0}, "between 0 and 1"),
    ({"data.holdout": NAN}, "between 0 and 1"),
    ({"data.seq_len": 1}, "at least 2"),
    ({"data.tokenizer": "words"}, "use bytes, bpe or the path"),
    ({"data.vocab": 263}, "264"),
    ({"data.vocab": 65537}, "65,536"),
    *[
        ({f"model.{name}": 0}, "at least 1")
        for name in [
            "embed_dim",
            "d_model",
            "n_layer",
            "expand",
            "d_state",
            "headdim",
            "ngroups",
            "d_conv",
            "mlp_every",
            "chunk_size",
        ]
    ],
    ({"model.vocab_size": -1}, "from the tokenizer"),
    ({"model.vocab_size": 65537}, "65,536"),
    ({"model.d_model": 100, "model.headdim": 64}, "multiple"),
    ({"model.d_model": 128, "model.headdim": 32, "model.ngroups": 3}, "does not divide the 4 heads"),
    ({"model.mlp_mult": 0.0}, "hidden units"),
    ({"model.mlp_mult": -1.0}, "hidden units"),
    ({"model.mlp_mult": NAN}, "hidden units"),
    ({"model.mlp_mult": INF}, "hidden units"),
    ({"model.cap": 0.0}, "model.softcap = off"),
    ({"model.cap": NAN}, "positive"),
    ({"model.unet": False, "model.self_skip": True}, "needs model.unet"),
    *[
        ({f"jepa.{name}": -0.1}, "not be negative")
        for name in ("ce_weight", "z_loss", "weight", "sigreg_weight", "vicreg_weight")
    ],
    ({"jepa.ce_weight": 0.0, "jepa.weight": 0.0, "jepa.sigreg_weight": 0.0}, "nothing to train on"),
    ({"jepa.rollout_steps": 0}, "at least 1; jepa.weight = 0"),
    ({"jepa.layer": -1}, "0 (all blocks)"),
    ({"model.n_layer": 4, "jepa.layer": 5}, "the model has model.n_layer = 4 blocks"),
    ({"jepa.weight": 0.0, "jepa.sigreg_weight": 0.0, "jepa.layer": 1}, "there are no latents"),
    ({"jepa.ce_weight": 0.0, "jepa.balance": 0.5}, "no gradient to compare with"),
    ({"jepa.weight": 0.0, "jepa.sigreg_weight": 0.0, "jepa.balance": 0.5}, "no latent term"),
    ({"jepa.balance": -0.1}, "not be negative"),
    ({"jepa.until": 0.0}, "turn the latent terms off"),
    ({"jepa.until": 1.5}, "at most 1"),
    ({"jepa.ce_weight": 0.0, "jepa.until": 0.5}, "nothing is trained after that"),
    ({"jepa.weight": 0.0, "jepa.sigreg_weight": 0.0, "jepa.until": 0.5}, "no latent term"),
    ({"jepa.weight": 0.0, "jepa.sigreg_weight": 0.0, "jepa.anneal": True}, "no latent term"),
    ({"jepa.until": 0.5, "jepa.sigreg_ramp": 0.6}, "λ would not reach"),
    ({"jepa.target_ema": 1.0}, "below 1"),
    ({"jepa.weight": 0.0, "jepa.target_ema": 0.99}, "nothing is predicted"),
    ({"jepa.stride": 0}, "at least 1"),
    ({"jepa.weight": 0.0, "jepa.stride": 4}, "nothing is predicted"),
    ({"data.seq_len": 16, "jepa.stride": 16}, "less than data.seq_len = 16"),
    ({"jepa.target_tokens": 0}, "at least 1"),
    ({"jepa.weight": 0.0, "jepa.target_tokens": 8}, "nothing is predicted"),
    ({"data.seq_len": 16, "jepa.rollout_steps": 2, "jepa.target_tokens": 8}, "less than data.seq_len = 16"),
    ({"jepa.weight": 0.0, "jepa.action": True}, "no predictor to give it to"),
    ({"jepa.sigreg_ramp": 1.5}, "between 0 and 1"),
    ({"jepa.sigreg_ramp": -0.5}, "between 0 and 1"),
    ({"jepa.sigreg_t_max": 3.0, "jepa.sigreg_t_min": 3.0}, "t_min < t_max"),
    ({"jepa.sigreg_t_min": -1.0}, "0 <= t_min"),
    ({"jepa.sigreg_knots": 1}, "at least 2"),
    ({"jepa.sigreg_projections": 0}, "at least 1"),
    ({"jepa.predictor_mult": -1}, "must not be negative"),
    ({"jepa.predictor_mult": 0, "jepa.action": True}, "there is no predictor to give it to; set jepa.predictor_mult"),
    ({"jepa.sigreg_pool": "timestep", "jepa.sigreg_timesteps": -1}, "0 (all)"),
    ({"jepa.sigreg_samples": -1}, "0 (all)"),
    ({"jepa.sigreg_pool": "timestep", "jepa.sigreg_samples": 5}, "use jepa.sigreg_timesteps"),
    ({"jepa.sigreg_pool": "positions", "jepa.sigreg_timesteps": 5}, "use jepa.sigreg_samples"),
    ({"jepa.sigreg_pool": "centered", "jepa.sigreg_timesteps": 5}, "use jepa.sigreg_samples"),
    ({"quant.qat_fraction": 1.1}, "between 0 and 1"),
    ({"quant.qat_fraction": -0.1}, "between 0 and 1"),
    ({"quant.large": 0}, "at least 1"),
    ({"quant.bits": 1}, "one of 2, 3"),
    ({"quant.budget_bytes": -1}, "0 (none) or more"),
    ({"quant.budget_after": 1.5}, "between 0 and 1"),
    *[
        ({"quant.bit_allocation": [item]}, "of the form blocks.0.mixer.in_proj.weight=5")
        for item in ("w", "w=", "=5", "w=1", "w=9", "w=44", "a b=4", "w=4 ")
    ],
    ({"quant.bit_allocation": ["b.w=4", "a.w=4", "a.w=5"]}, "names the tensor 'a.w' twice"),
    *[
        ({"quant.bits": 32, f"quant.{name}": value}, "leave it out")
        for name, value in {
            "budget_bytes": 1000,
            "bit_allocation": ["a.w=4"],
            "fp8_scale": "none",
            "embedding": "int6",
            "vectors": "int8",
            "large": 1000,
            "budget_after": 0.25,
        }.items()
    ],
    *[
        ({f"optim.{name}": -0.1}, "not be negative")
        for name in ("muon_lr", "adam_lr", "muon_weight_decay", "adam_weight_decay", "grad_clip")
    ],
    *[
        ({f"optim.{name}": value}, "[0, 1)")
        for name in ("muon_momentum", "muon_momentum_start", "adam_beta1", "adam_beta2")
        for value in (1.0, -0.1)
    ],
    ({"optim.warmdown": 1.01}, "between 0 and 1"),
    ({"optim.adam_eps": 0.0}, "positive"),
    ({"optim.newton_schulz_steps": 0}, "at least 1"),
    ({"optim.ghost_steps": -1}, "not be negative"),
    ({"optim.muon_momentum_steps": -1}, "not be negative"),
    ({"train.steps": -1}, "not be negative"),
    ({"train.seconds": -1.0}, "not be negative"),
    ({"train.seconds": NAN}, "not be negative"),
    ({"train.tokens": -1}, "not be negative"),
    ({"train.seconds": 0.0, "train.steps": 0}, "set train.steps, train.seconds or train.tokens"),
    ({"train.tokens_per_micro": 0}, "at least 1"),
    ({"train.tokens_per_micro": 65536, "train.tokens_per_step": 100000}, "multiple of train.tokens_per_micro"),
    ({"train.tokens_per_step": 0}, "at least 1"),
    ({"train.tokens_per_step": -65536}, "at least 1"),
    ({"train.keep_checkpoints": 0}, "at least 1"),
    *[
        ({f"train.{name}": -1}, "not be negative")
        for name in ["threads", "terms_every", "val_every", "val_tokens", "checkpoint_every"]
    ],
    ({"train.val_every": 1.5}, "train.val_every = 1.5: must be a whole number of steps, or a share below 1"),
    ({"train.checkpoint_seconds": -1.0}, "not be negative"),
    ({"eval.stride": -1}, "plain windows only"),
    *[
        ({f"eval.{name}": -1}, "not be negative")
        for name in ["tokens_per_batch", "sliding_tokens", "calibrate_tokens", "diagnostics_tokens", "sample_tokens"]
    ],
    ({"data.seq_len": 512, "eval.stride": 513}, "longer than the window, data.seq_len = 512"),
    ({"data.seq_len": 1000, "train.tokens_per_micro": 65536}, "multiple of data.seq_len = 1000"),
    ({"data.tokenizer": "bytes", "model.vocab_size": 8192}, "exactly 256"),
    ({"data.seq_len": 4, "jepa.rollout_steps": 4}, "less than data.seq_len = 4"),
]


@pytest.mark.parametrize(("settings", "remedy"), REFUSED, ids=lambda value: str(value))
def test_a_refusal_names_setting_value_and_remedy(settings: dict[str, Any], remedy: str) -> None:
    field, value = list(settings.items())[-1]
    with pytest.raises(ConfigError) as caught:
        with_settings(Run(), settings)
    message = str(caught.value)
    assert field in message
    assert remedy in message
    if isinstance(value, list):
        assert value[-1].partition("=")[0] in message
    elif not isinstance(value, bool):
        assert str(value) in message.replace(",", "")
    assert "\n" not in message
    assert isinstance(caught.value, UserError)


@pytest.mark.parametrize("section", [field.name for field in dataclasses.fields(Run)])
def test_a_value_of_the_wrong_type_is_refused_by_name(section: str) -> None:
    hints = get_type_hints(get_type_hints(Run)[section])
    values: list[Any] = [None, True, 1, 1.5, "text", ["text"], [1], {"a": 1}]
    for key, hint in hints.items():
        for value in values:
            origin = getattr(hint, "__origin__", None)
            if origin is tuple:
                right = value == ["text"]
            elif origin is not None:
                right = any(value == choice and type(value) is type(choice) for choice in hint.__args__)
            else:
                right = type(value) is hint or (hint is float and type(value) is int)
            if not right:
                with pytest.raises(ConfigError, match=f"{section}.{key}"):
                    from_dict({section: {key: value}})


def test_integers_are_fine_floats_and_booleans_are_no_integers() -> None:
    run = with_settings(Run(), {"jepa.weight": 2, "train.seconds": 30})
    assert run.jepa.weight == 2.0
    assert isinstance(run.jepa.weight, float)
    assert isinstance(run.train.seconds, float)
    with pytest.raises(ConfigError, match=r"model.n_layer = True: must be of type int"):
        with_settings(Run(), {"model.n_layer": True})
    with pytest.raises(ConfigError, match=r"model.tie = True: use one of 0, 1, 2, 3"):
        with_settings(Run(), {"model.tie": True})


def test_other_common_names_are_understood() -> None:
    for name, meant in (("model.hidden_size", "model.d_model"), ("optim.lr", "optim.muon_lr")):
        with pytest.raises(ConfigError, match=f"unknown setting {name}; did you mean {meant}\\?"):
            build({name: 3})
    with pytest.raises(ConfigError, match=r"unknown setting train\.stpes; did you mean train\.steps\?"):
        build({"train.stpes": 3})
    with pytest.raises(ConfigError, match=r"unknown setting model\.dropout; there is no dropout: weight decay"):
        build({"model.dropout": 0.1})
    with pytest.raises(ConfigError, match=r"unknown setting quant\.group; integers have one scale per row"):
        build({"quant.group": 64})
    assert OTHER_NAMES.keys() <= setting_types().keys()
    names = [name for text in (*OTHER_NAMES.values(), *ABSENT.values()) for name in text.split()]
    assert len(names) == len(set(names)), "each name means one thing"
    assert not {name.rpartition(".")[2] for name in setting_types()} & ({*names} - {"vocab_size"})
    # What the hints name exists.
    for word in re.findall(r"\b[a-z]+\.[a-z_0-9]+", " ".join(ABSENT)):
        assert word in setting_types()


def test_unknown_rooms_and_keys_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"unknown section \[modell\]; use one of data, model"):
        from_dict({"modell": {}})
    with pytest.raises(ConfigError, match=r"unknown setting model.width"):
        from_dict({"model": {"width": 3}})
    with pytest.raises(ConfigError, match=r"\[model\] must be a table"):
        from_dict({"model": 3})
    for dotted in ("model.width", "modell.dim", "d_model", "model", ".dim", "model.d_model.x"):
        with pytest.raises(ConfigError, match=f"unknown setting {dotted}"):
            with_settings(Run(), {dotted: 3})


def test_absent_keys_take_their_defaults() -> None:
    assert from_dict({}) == Run()
    assert from_dict({"model": {"d_model": 128}, "train": {"steps": 100}}).model == Model(d_model=128)


def test_with_settings_changes_what_it_names_and_nothing_else() -> None:
    before = Run()
    after = with_settings(before, {"jepa.weight": 0.25, "eval.prompts": ["a", "b"]})
    assert after.jepa == Jepa(weight=0.25)
    assert after.eval.prompts == ("a", "b")
    assert dataclasses.replace(after, jepa=before.jepa, eval=before.eval) == before
    assert before == Run(train=Train(steps=100))


def test_a_layer_with_a_budget_drops_the_budgets_below_it() -> None:
    steps, seconds, both = {"train.steps": 5}, {"train.seconds": 9.0}, {"train.steps": 5, "train.seconds": 9.0}
    assert merge(both, steps) == merge(seconds, steps) == steps
    assert merge(both, seconds) == merge(steps, seconds) == seconds
    assert merge(steps, both) == both
    assert merge(both, {"train.steps": 0, "jepa.rollout_steps": 2}) == {
        "train.steps": 0,
        "train.seconds": 9.0,
        "jepa.rollout_steps": 2,
    }
    assert merge({"jepa.rollout_steps": 1, "train.seed": 3}, steps, {"jepa.rollout_steps": 2}) == {
        "jepa.rollout_steps": 2,
        "train.seed": 3,
        "train.steps": 5,
    }
    assert merge(both, {"train.tokens": 7}) == {"train.tokens": 7}
    assert both == {"train.steps": 5, "train.seconds": 9.0}
    assert (with_settings(Run(), seconds).train.steps, with_settings(Run(), seconds).train.seconds) == (0, 9.0)


TEXTS = st.characters(codec="utf-8", exclude_characters="\0")
SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "data.train": st.text(TEXTS, max_size=20),
        "data.holdout": st.floats(0.01, 0.99),
        "data.shuffle": st.booleans(),
        "data.vocab": st.integers(264, 65536),
        "model.tie": st.sampled_from([0, 1, 2, 3]),
        "model.softcap": st.sampled_from(["poly", "tanh", "off"]),
        "model.mlp_mult": st.floats(0.5, 8),
        "jepa.z_loss": st.floats(0, 1, allow_subnormal=False),
        "jepa.rollout_steps": st.integers(1, 9),
        "optim.adam_eps": st.floats(1e-300, 1),
        "train.seconds": st.floats(0, 1e9),
        "train.tokens": st.integers(0, 10**12),
        "eval.prompts": st.lists(st.text(TEXTS, max_size=9), max_size=4),
    },
)


@given(SETTINGS)
def test_round_trip_through_plain_values(settings: dict[str, Any]) -> None:
    run = with_settings(Run(), settings)
    nested = to_dict(run)
    for dotted, value in settings.items():
        section, key = dotted.split(".")
        assert nested[section][key] == value
    assert from_dict(nested) == run
    assert from_dict(json.loads(json.dumps(nested))) == run


def test_every_setting_is_in_the_plain_values() -> None:
    nested = to_dict(Run())
    for field in dataclasses.fields(Run):
        section = getattr(Run(), field.name)
        assert set(nested[field.name]) == {inner.name for inner in dataclasses.fields(section)}


def test_settings_cannot_be_changed_in_place() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Run().model.d_model = 3  # type: ignore[misc]


def test_derived_sizes() -> None:
    model = Model(d_model=96, expand=2, headdim=32, mlp_mult=2.5)
    assert (model.d_inner, model.heads, model.d_intermediate) == (192, 6, 240)
    assert Jepa(weight=0.0, sigreg_weight=0.1).active
    assert Jepa(weight=0.1, sigreg_weight=0.0).active
    assert Jepa(weight=0.0, sigreg_weight=0.0, vicreg_weight=0.1).active
    assert not Jepa(weight=0.0, sigreg_weight=0.0).active


def test_what_makes_sense_is_accepted() -> None:
    for settings in (
        {"jepa.ce_weight": 0.0},
        {"jepa.weight": 0.0, "jepa.sigreg_weight": 0.0},
        {"jepa.weight": 0.0, "jepa.sigreg_weight": 0.0, "data.seq_len": 2, "jepa.rollout_steps": 3},
        {"train.steps": 0, "train.seconds": 1.0},
        {"train.seconds": INF},
        {"eval.stride": 1024},
        {"data.tokenizer": "bytes", "model.vocab_size": 256},
        {"data.tokenizer": "my/words.model"},
        {"optim.grad_clip": 0.0, "optim.warmdown": 0.0},
        {"quant.qat_fraction": 0.0},
        {"model.unet": True, "model.self_skip": True},
        {"jepa.sigreg_pool": "timestep", "jepa.sigreg_timesteps": 64},
        {"jepa.sigreg_pool": "centered", "jepa.sigreg_samples": 64},
    ):
        run = with_settings(Run(), settings)
        assert from_dict(to_dict(run)) == run
