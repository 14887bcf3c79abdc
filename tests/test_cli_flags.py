"""Every config field as a flag: all spellings, one clear line for every mistake."""

from __future__ import annotations

import pytest

from jepamba.config import ConfigError, Run, to_dict, with_settings
from jepamba.errors import UserError
from jepamba.flags import flag_types, flags_help, parse_flags, parse_settings, split_flags
from jepamba.presets import load_preset
from jepamba.study.page import flat


def parse(*words: str) -> Run:
    flags, rest = split_flags(words)
    assert rest == []
    return parse_flags(Run(), flags)


def test_every_field_is_a_flag_that_takes_its_own_value() -> None:
    values = dict(flat(to_dict(Run())))
    assert set(flag_types()) == set(values)
    words: list[str] = []
    for name, value in values.items():
        words += [f"--{name}", *(value if isinstance(value, list) else [str(value)])]
    assert parse(*words) == Run()


def test_values_reach_their_field() -> None:
    run = parse(
        "--train.steps", "7", "--data.train", "a b/", "--jepa.weight", "0", "--model.tie=3", "--quant.bits", "5"
    )
    assert run == with_settings(
        Run(), {"train.steps": 7, "data.train": "a b/", "jepa.weight": 0.0, "model.tie": 3, "quant.bits": 5}
    )


@pytest.mark.parametrize("word", ["--train.tokens-per-step", "--train.tokens_per_step", "--train.tokens_per-step"])
def test_hyphens_and_underscores_are_the_same(word: str) -> None:
    assert parse(word, str(65536 * 2)).train.tokens_per_step == 131072


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--train.compile"], True),
        (["--train.compile", "yes"], True),
        (["--train.compile=True"], True),
        (["--train.no-compile"], False),
        (["--train.no_compile"], False),
        (["--train.compile", "False"], False),
        (["--train.compile", "0"], False),
        (["--train.compile", "off", "--train.compile"], True),
    ],
)
def test_yes_or_no(words: list[str], value: bool) -> None:
    assert parse(*words).train.compile is value


def test_a_yes_or_no_flag_does_not_eat_what_follows() -> None:
    flags, rest = split_flags(["--train.compile", "quick", "--out", "x"])
    assert flags == {"train.compile": ["True"]}
    assert rest == ["quick", "--out", "x"]


def test_several_values() -> None:
    assert parse("--eval.prompts", "The ", "A", "--train.steps", "3").eval.prompts == ("The ", "A")
    assert parse("--eval.prompts", "--train.steps", "3").eval.prompts == ()


def test_negative_numbers_are_values() -> None:
    with pytest.raises(ConfigError, match="negative"):
        parse("--train.steps", "-1")


def test_the_rest_stays_in_order() -> None:
    flags, rest = split_flags(["quick", "--train.steps", "3", "--out", "d", "--json", "--data.train=x"])
    assert rest == ["quick", "--out", "d", "--json"]
    assert flags == {"train.steps": ["3"], "data.train": ["x"]}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--train.stps", "5"], r"unknown flag --train\.stps; did you mean --train\.steps\?"),
        (["--model.steps", "5"], r"did you mean --train\.steps\?"),
        (["--zzz.qqq", "5"], "--help lists all flags"),
        (["--train.steps"], "--train.steps needs a value"),
        (["--train.steps", "--data.train", "x"], "--train.steps needs a value"),
        (["--train.steps", "many"], r"--train\.steps.*many"),
        (["--train.steps", "1.5"], r"--train\.steps.*1\.5"),
        (["--train.seconds", "long"], r"--train\.seconds.*long"),
        (["--model.tie", "7"], r"'7'.*--model\.tie.*'0', '1', '2', '3'"),
        (["--data.shuffle=perhaps"], "say yes or no"),
        (["--data.holdout", "2"], r"data\.holdout = 2\.0"),
    ],
)
def test_mistakes_are_one_line(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse(*words)
    assert "\n" not in str(caught.value)
    assert "│" not in str(caught.value)
    assert "---" not in str(caught.value)
    assert "helptext" not in str(caught.value)


def test_settings_alone_keep_their_types() -> None:
    flags, _ = split_flags(["--train.steps", "5", "--jepa.weight", "0", "--eval.prompts", "a", "--data.shuffle", "no"])
    assert parse_settings(Run(), flags) == {
        "train.steps": 5,
        "train.seconds": 0.0,  # a budget in steps takes its place
        "jepa.weight": 0.0,
        "eval.prompts": ["a"],
        "data.shuffle": False,
    }


def test_help_lists_every_flag() -> None:
    text = flags_help()
    for name in flag_types():
        assert f"--{name}" in text


@pytest.mark.parametrize(
    ("words", "steps", "seconds"),
    [
        (["--train.steps", "5"], 5, 0.0),
        (["--train.seconds", "9"], 0, 9.0),
        (["--train.steps", "5", "--train.seconds", "9"], 5, 9.0),
        (["--train.steps", "0"], 0, 210.0),
        (["--train.seed", "1"], 0, 210.0),
    ],
)
def test_a_budget_of_one_kind_takes_the_place_of_the_presets_own(words: list[str], steps: int, seconds: float) -> None:
    """1,000 steps are 1,000 steps, not what fits into the preset's three and a half minutes."""
    flags, _ = split_flags(words)
    run = parse_flags(load_preset("quick"), flags)
    assert (run.train.steps, run.train.seconds) == (steps, seconds)
    assert with_settings(load_preset("quick"), parse_settings(load_preset("quick"), flags)) == run
