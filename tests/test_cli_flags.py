"""Every config field as a flag: all spellings, one clear line for every mistake."""

from __future__ import annotations

import pytest

from jepamba.cli import main
from jepamba.cli.flags import normalize_flags, parse_settings
from jepamba.config import ConfigError, Run, setting_types, to_dict, with_settings
from jepamba.errors import UserError
from jepamba.report.page import flat


def parse(*words: str) -> Run:
    return with_settings(Run(), parse_settings(words))


def test_every_field_is_a_flag_that_takes_its_own_value() -> None:
    values = dict(flat(to_dict(Run())))
    assert set(setting_types()) == set(values)
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
        (["--train.graph"], True),
        (["--train.graph", "yes"], True),
        (["--train.graph=True"], True),
        (["--train.no-graph"], False),
        (["--train.no_graph"], False),
        (["--train.graph", "False"], False),
        (["--train.graph", "0"], False),
        (["--train.graph", "off", "--train.graph"], True),
    ],
)
def test_yes_or_no(words: list[str], value: bool) -> None:
    assert parse(*words).train.graph is value


def test_a_yes_or_no_flag_does_not_eat_what_follows() -> None:
    assert normalize_flags(["--train.graph", "quick", "--out", "x"]) == ["--train.graph=yes", "quick", "--out", "x"]


def test_several_values() -> None:
    assert parse("--eval.prompts", "The ", "A", "--train.steps", "3").eval.prompts == ("The ", "A")
    assert parse("--eval.prompts", "--train.steps", "3").eval.prompts == ()


def test_negative_numbers_are_values() -> None:
    with pytest.raises(ConfigError, match="negative"):
        parse("--train.steps", "-1")


def test_a_value_may_begin_with_a_hyphen_or_be_empty() -> None:
    assert parse("--data.train", "-x", "--data.val=", "--jepa.weight", "1e-3").data.train == "-x"


def test_the_rest_stays_in_order() -> None:
    words = ["quick", "--train.steps", "3", "--out", "d", "--json", "--data.train=x", "--", "--train.steps", "4"]
    assert normalize_flags(words) == [
        "quick", "--train.steps=3", "--out", "d", "--json", "--data.train=x", "--", "--train.steps", "4",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--train.stps", "5"], r"unknown flag --train\.stps; did you mean --train\.steps\?"),
        (["--model.steps", "5"], r"did you mean --train\.steps\?"),
        (["--zzz.qqq", "5"], "--help lists all flags"),
        (["--", "--train.steps", "5"], r"misplaced flag --train\.steps; flags go after the command and before any --$"),
        (["--train.steps"], r"--train\.steps: expected one argument"),
        (["--train.steps", "--data.train", "x"], r"--train\.steps: expected one argument"),
        (["--train.steps", "many"], r"--train\.steps.*many"),
        (["--train.steps", "1.5"], r"--train\.steps.*1\.5"),
        (["--train.seconds", "long"], r"--train\.seconds.*long"),
        (["--model.tie", "7"], r"--model\.tie: '7': use one of 0, 1, 2, 3"),
        (["--data.shuffle=perhaps"], "use yes or no"),
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


def test_settings_keep_their_types() -> None:
    words = ["--train.steps", "5", "--jepa.weight", "0", "--eval.prompts", "a", "--data.shuffle", "no", "--model.tie=3"]
    expected = {"train.steps": 5, "jepa.weight": 0.0, "eval.prompts": ["a"], "data.shuffle": False, "model.tie": 3}
    found = parse_settings(words)
    assert found == expected
    assert list(map(type, found.values())) == list(map(type, expected.values()))


@pytest.mark.parametrize("command", [["train"], ["study", "run"]])
def test_help_lists_every_flag_with_its_docstring(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*command, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name in setting_types():
        assert f"--{name} " in text
    assert "Vocabulary size; 0: that of the tokenizer. (default: 0)" in text
    assert text.index("examples:") < text.index("[data]") < text.index("[eval]")


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
def test_a_budget_of_one_kind_takes_the_place_of_the_presets_own(
    words: list[str], steps: int, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1,000 steps are 1,000 steps, not what fits into the preset's three and a half minutes."""
    runs: list[Run] = []
    monkeypatch.setattr("jepamba.cli.train._dry_run", lambda run, choices, as_json: runs.append(run) or 0)
    assert main(["train", "quick", "--dry-run", *words]) == 0
    assert (runs[0].train.steps, runs[0].train.seconds) == (steps, seconds)
