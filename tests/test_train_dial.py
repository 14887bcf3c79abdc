"""The dial: its choices, what overrides them, and that they are made once."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
import tomllib
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from jepamba.artifact.inspect import LIMIT_BYTES
from jepamba.cli import main
from jepamba.config import ConfigError, Run, flatten, to_dict, with_settings
from jepamba.config.train import DIALLED
from jepamba.data import corpus
from jepamba.distributed import World
from jepamba.gpu_turn import GPU_TURN
from jepamba.model_size import model_size
from jepamba.presets import dump_toml, load_preset
from jepamba.study import run as study_run
from jepamba.study.plan import Plan, parse_plan
from jepamba.train import dial, resolve, resume, train
from jepamba.train.checkpoint import checkpoints
from jepamba.train.dial import (
    BYTES_PER_PARAMETER,
    CODE_RESERVE,
    MAX_DECAY,
    SIZES,
    Circumstances,
    choose,
    resolve_dial,
    resolve_vocabulary,
)
from jepamba.train.state import TrainState
from spawn import together
from tiny import text_file

GPU, CPU = Circumstances(44_000_000, True), Circumstances(44_000_000, False)
H200 = 4.67e13
"""Parameter tokens per second of the 30.2 M model (levers-30s: 32,768 tokens in 21.2 ms)."""


def best(**settings: Any) -> Run:
    """The preset with `settings`, whose dots are written as two underscores."""
    return with_settings(load_preset("best"), {name.replace("__", "."): value for name, value in settings.items()})


def chosen(run: Run, known: Circumstances = GPU) -> dict[str, Any]:
    return {choice.name: choice.value for choice in choose(run, known)}


def size(run: Run, known: Circumstances) -> int:
    """Parameters of the chosen model."""
    return model_size(dial.apply(run, choose(run, known))).counts["kept"]


def small(folder: Path, **settings: Any) -> Run:
    """A run of seconds on real text, with everything left to the dial that fits into the time of a test."""
    few = {"eval__calibrate_tokens": 512, "eval__diagnostics_tokens": 512, "eval__sample_tokens": 4}
    return best(
        data__train=str(text_file(folder)),
        data__tokenizer="bytes",
        data__cache=str(folder / "cache"),
        **few,
        **settings,
    )


def test_every_setting_of_the_dial_is_chosen_with_a_reason() -> None:
    choices = choose(best(train__steps=100), GPU)
    assert sorted(DIALLED) == sorted(load_preset("best").train.dial)
    assert {"data.vocab", *(choice.name for choice in choices)} == set(DIALLED)
    assert all(choice.reason for choice in choices)
    assert choices == choose(best(train__steps=100), GPU)


@pytest.mark.parametrize(
    ("device", "budget", "pieces"),
    [
        ("cuda", {"train__steps": 9}, 16_384),
        ("cpu", {"train__steps": 1_953}, 4_096),
        ("cpu", {"train__steps": 1_954}, 8_192),
        ("cpu", {"train__steps": 9_000, "train__tokens_per_step": 256}, 4_096),
        ("cpu", {"train__tokens": 5_000_000}, 8_192),
        ("cpu", {"train__seconds": 600.0}, 4_096),
        ("cpu", {"train__seconds": 1_140.0}, 8_192),
    ],
)
def test_the_vocabulary_follows_device_and_budget_unless_it_is_given(
    device: str, budget: dict[str, Any], pieces: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dial, "choose_device", lambda _: SimpleNamespace(device=torch.device(device)))
    text = {"data__train": str(text_file(tmp_path)), **budget}
    run, choices = resolve_vocabulary(best(**text))
    assert (run.data.vocab, [choice.value for choice in choices]) == (pieces, [pieces])
    assert "data.vocab" not in run.train.dial
    run, choices = resolve_vocabulary(best(**text, data__vocab=512))
    assert (run.data.vocab, choices) == (512, [])
    run, choices = resolve_vocabulary(best(**text, data__tokenizer="bytes"))
    assert "not used" in choices[0].reason
    assert "data.vocab" not in run.train.dial


def test_the_measured_recipe_at_two_minutes_of_an_h200() -> None:
    found = chosen(best(train__seconds=120.0), Circumstances(44_000_000, True, 1, H200))
    assert (found["model.d_model"], found["model.n_layer"]) == (640, 8)
    assert (found["model.mlp_mult"], found["model.mlp_every"], found["data.seq_len"]) == (2.5, 1, 1024)
    assert (found["train.tokens_per_step"], found["train.tokens_per_micro"]) == (32_768, 32_768)
    assert (found["optim.muon_lr"], found["optim.adam_lr"], found["optim.warmdown"]) == (0.03, 0.015, 0.6)
    assert (found["quant.qat_fraction"], found["quant.budget_bytes"]) == (0.3, LIMIT_BYTES - CODE_RESERVE)


def test_a_long_run_of_a_gpu_has_the_measured_lower_learning_rate() -> None:
    names = ("optim.muon_lr", "optim.adam_lr", "optim.warmdown")
    short, long, other = (
        chosen(best(train__steps=steps), Circumstances(130_000_000, on_gpu, 1, None))
        for steps, on_gpu in ((9_999, True), (10_000, True), (10_000, False))
    )
    assert [short[name] for name in names] == [0.03, 0.015, 0.6]
    assert [long[name] for name in names] == [0.02, 0.01, 1.0]
    assert [other[name] for name in names] == [0.02, 0.01, 0.6]
    assert chosen(best(train__seconds=540.0), Circumstances(118_000_000, True, 1, H200))["optim.warmdown"] == 1.0


@pytest.mark.parametrize(
    ("preset", "text_tokens", "speed"),
    # Tokens per second × parameters on two cores, without and with AVX512-BF16.
    [("quick", 640_000, 5e9), ("quick", 640_000, 1.5e10), ("cpu", 44_000_000, 1e10), ("cpu", 44_000_000, 3e10)],
)
def test_the_presets_for_two_cores_are_what_the_dial_chooses(preset: str, text_tokens: int, speed: float) -> None:
    fixed = load_preset(preset)
    run = best(train__seconds=fixed.train.seconds, data__vocab=fixed.data.vocab)
    given = {name: value for name, value in flatten(to_dict(fixed)).items() if name in DIALLED and name != "data.vocab"}
    known = Circumstances(text_tokens, False, 1, speed)
    # They leave to the dial what depends on the text.
    assert chosen(run, known) == given | chosen(fixed, known)
    assert chosen(fixed, known).keys() == {"optim.muon_weight_decay", "optim.adam_weight_decay", "train.tokens"}


@pytest.mark.parametrize(
    ("steps", "text_tokens", "decay"),
    # First the texts of the lab note weight-decay, where 0.04, 0.09, 0.2 and 1.4 were the best of those tried. In the
    # longest run the learning rate is 0.02.
    [
        (1_200, 43_897_222, 0.042),
        (1_200, 18_158_382, 0.11),
        (1_200, 9_113_540, 0.24),
        (1_200, 2_291_283, 1.3),
        (600, 43_897_222, 0.083),
        (20_000, 30_000_000, 0.15),
    ],
)
def test_the_decay_follows_steps_and_epochs(steps: int, text_tokens: int, decay: float) -> None:
    known, name = Circumstances(text_tokens, True), "optim.muon_weight_decay"
    assert chosen(best(train__steps=steps), known)[name] == decay
    assert chosen(best(train__steps=0, train__tokens=steps * 32_768), known)[name] == decay
    # With half of the learning rate it is twice as much.
    rate = chosen(best(train__steps=steps), known)["optim.muon_lr"]
    halved = chosen(best(train__steps=steps, optim__muon_lr=rate / 2), known)[name]
    assert halved == pytest.approx(2 * decay, rel=0.05)
    assert name not in chosen(best(train__steps=steps, optim__muon_weight_decay=0.1), known)


@pytest.mark.parametrize(
    ("steps", "known"),
    # `cpu` at its whole budget, and 540 s and 600 s of one and two GPUs on 118 M tokens.
    [
        (7_880, Circumstances(43_000_000, False)),
        (22_000, Circumstances(118_000_000, True)),
        (35_000, Circumstances(118_000_000, True, 2)),
    ],
)
def test_long_runs_keep_the_decay_that_they_were_measured_with(steps: int, known: Circumstances) -> None:
    assert chosen(best(train__steps=steps), known)["optim.muon_weight_decay"] == 0.04


def test_the_decay_of_a_budget_in_seconds_follows_the_speed() -> None:
    run, name = best(train__seconds=105.0), "optim.muon_weight_decay"
    # 700 and 1,400 steps of one epoch or less.
    slow, fast = (chosen(run, Circumstances(10**8, False, 1, speed)) for speed in (1.5e10, 3e10))
    assert slow["model.d_model"] == fast["model.d_model"]
    assert slow[name] == pytest.approx(2 * fast[name], rel=0.05)


@pytest.mark.parametrize(
    ("steps", "text_tokens", "decay"),
    # First the texts of the lab note weight-decay, where 0.2 was as good as 0.05, and 0.5 better.
    [(1_000, 571_326, 0.14), (600, 162_145, 0.51), (2_400, 162_145, 0.51), (1_000, 10_000, 5.0), (7_600, 10**9, 0.05)],
)
def test_the_decay_of_adam_follows_the_text_on_a_cpu(steps: int, text_tokens: int, decay: float) -> None:
    run, name = best(train__steps=steps), "optim.adam_weight_decay"
    assert chosen(run, Circumstances(text_tokens, False))[name] == decay
    assert chosen(run, Circumstances(text_tokens, True))[name] == 0.05


def test_the_decay_of_a_step_is_bounded() -> None:
    run, name = best(train__steps=1_200), "optim.muon_weight_decay"
    for text_tokens in (1, 1_000, 100_000):
        assert chosen(run, Circumstances(text_tokens, True))[name] == 1.6
    assert chosen(best(train__steps=1_200, optim__muon_lr=0.0), GPU)[name] == 0.0
    # The candidate whose speed is measured has no budget yet.
    assert chosen(best(train__seconds=60.0), GPU)[name] == 0.0


@pytest.mark.parametrize("preset", ["best", "cpu", "quick"])
def test_a_budget_in_seconds_reads_little_text_a_limited_number_of_times(preset: str) -> None:
    def tokens(text_tokens: int, **settings: Any) -> int:
        known = Circumstances(text_tokens, False, 1, 2e10)
        run = with_settings(load_preset(preset), {name.replace("__", "."): value for name, value in settings.items()})
        resolved = dial.apply(run, choose(run, known))
        assert (resolved.train.seconds, resolved.train.steps) == (run.train.seconds, run.train.steps)
        return resolved.train.tokens

    hour = {"train__seconds": 3600.0}
    assert [tokens(text, **hour) for text in (10_000, 50_000)] == [40_000, 200_000]
    # More text for each parameter is read more often.
    parameters = size(load_preset("cpu"), CPU)
    run = with_settings(load_preset("cpu"), {"train.seconds": 1e6})
    for text_tokens, epochs in ((parameters // 20, 4), (parameters // 2, 20), (parameters, 40)):
        limit = chosen(run, Circumstances(text_tokens, False, 1, 2e10))["train.tokens"]
        assert limit == pytest.approx(epochs * text_tokens, rel=1e-4)
    assert tokens(10**8, **hour) == 0
    # What is given is kept.
    assert tokens(10_000, **hour, train__tokens=10**9) == 10**9
    assert tokens(10_000, train__steps=10**6) == 0
    assert tokens(10_000, train__tokens=10**9) == 10**9


def test_the_decays_and_the_size_follow_the_limited_budget() -> None:
    short, long = (
        chosen(best(train__seconds=seconds), Circumstances(50_000, False, 1, 2e10)) for seconds in (1e4, 1e6)
    )
    assert short == long
    given = chosen(best(train__tokens=200_000), Circumstances(50_000, False))
    assert short == given | {"train.tokens": 200_000}


def test_a_decay_at_its_bound_names_the_bound_and_not_the_rule() -> None:
    reasons = {
        text_tokens: {choice.name: choice.reason for choice in choose(best(train__steps=100), known)}
        for text_tokens in (2_600, 10**7)
        for known in [Circumstances(text_tokens, False)]
    }
    for name in ("optim.muon_weight_decay", "optim.adam_weight_decay"):
        assert reasons[2_600][name] == f"learning rate × decay is at most {MAX_DECAY}"
        assert "learning rate · steps" in reasons[10**7][name]


@pytest.mark.parametrize(
    "limits", [{}, {"quant__bits": 5}, {"quant__budget_bytes": 6_000_000}, {"model__mlp_mult": 8.0}]
)
def test_the_speed_of_a_gpu_is_measured_with_the_largest_model_that_fits(limits: dict[str, Any]) -> None:
    """The speed of a small model says nothing of a large one's there."""
    candidate = size(best(train__seconds=540.0, **limits), replace(GPU, parameter_tokens_per_second=None))
    largest = size(best(train__tokens=10**12, **limits), Circumstances(10**12, True))
    assert candidate == largest
    assert size(best(train__seconds=540.0, **limits), replace(CPU, parameter_tokens_per_second=None)) < largest


def test_a_step_that_is_no_multiple_of_the_windows_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"train\.tokens_per_step = 1000: must be a multiple of data\.seq_len = 256$"):
        choose(best(train__steps=9, train__tokens_per_step=1000), CPU)
    with pytest.raises(ConfigError, match=r"= 512: must be a multiple of data\.seq_len = 256 × 3 processes"):
        choose(best(train__steps=9, train__tokens_per_step=512), Circumstances(10**8, False, 3))


@pytest.mark.parametrize(
    ("budget", "on_gpu"),
    [
        ("tokens", False),
        ("seconds", True),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [("steps", True), ("steps", False), ("tokens", True), ("seconds", False)]
        ),
    ],
)
def test_sizes_rise_with_the_budget_and_fit_the_limit(budget: str, on_gpu: bool) -> None:
    found = []
    # From thousandths of a second, in which a GPU reads too little for its measured sizes.
    for amount in (2**power for power in range(1 if budget != "seconds" else -8, 40, 3)):
        known = Circumstances(10**12, on_gpu, 1, H200 if on_gpu else 1.1e10)
        run = best(**{f"train__{budget}": float(amount) if budget == "seconds" else amount})
        found.append(size(run, known))
    assert found == sorted(found)
    assert len(set(found)) > 3
    assert max(found) * BYTES_PER_PARAMETER <= LIMIT_BYTES - CODE_RESERVE


def test_a_smaller_limit_gives_a_smaller_model() -> None:
    limits = (400_000, 2_000_000, 6_000_000, 12_000_000, 16_000_000)
    sizes = [size(best(train__tokens=10**10, quant__budget_bytes=limit), CPU) for limit in limits]
    assert sizes == sorted(sizes)
    assert all(count * BYTES_PER_PARAMETER <= limit for count, limit in zip(sizes[1:], limits[1:], strict=True))
    assert size(best(train__tokens=10**10, quant__bits=8), GPU) < size(best(train__tokens=10**10), GPU)


def test_epochs_beyond_four_do_not_ask_for_a_larger_model() -> None:
    run = best(train__tokens=10**9)
    sizes = [size(run, Circumstances(tokens, True)) for tokens in (500_000, 10_000_000, 132_000_000)]
    assert sizes == sorted(set(sizes))


def test_the_table_of_sizes_is_sorted() -> None:
    parameters = [dial._parameters(best(), size) for size in SIZES]
    for (small, large), (fewer, more) in zip(pairwise(SIZES), pairwise(parameters), strict=True):
        # In tokens and in tokens × parameters, so that no budget in seconds skips back either.
        assert small.cpu_tokens < large.cpu_tokens
        assert small.gpu_tokens < large.gpu_tokens
        assert fewer < more


@pytest.mark.parametrize(
    "known",
    [
        pytest.param(Circumstances(10**8, gpu, ranks), marks=() if ranks in (1, 3, 8) else pytest.mark.slow)
        for gpu in (True, False)
        for ranks in range(1, 10)
    ],
)
def test_the_batch_gives_every_process_its_windows(known: Circumstances) -> None:
    for tokens in (10**5, 10**7, 10**9):
        run = dial.apply(best(train__tokens=tokens), choose(best(train__tokens=tokens), known))
        assert run.train.tokens_per_step % (known.world_size * run.data.seq_len) == 0
        assert run.train.tokens_per_micro * known.world_size == run.train.tokens_per_step


def test_given_settings_are_kept_and_the_rest_follows() -> None:
    run = best(train__tokens=10**6, train__tokens_per_step=12_288, model__d_model=256, optim__warmdown=0.85)
    run, _ = resolve_vocabulary(run)
    found = chosen(run, CPU)
    assert not {"train.tokens_per_step", "model.d_model", "optim.warmdown"} & found.keys()
    resolved = dial.apply(run, choose(run, CPU))
    assert (resolved.train.tokens_per_step, resolved.model.d_model, resolved.optim.warmdown) == (12_288, 256, 0.85)
    assert (resolved.train.tokens_per_micro, resolved.optim.muon_lr, resolved.train.dial) == (12_288, 0.03, ())
    # Given bits hold for every matrix.
    assert chosen(best(train__steps=9, quant__bits=6))["quant.budget_bytes"] == 0
    assert chosen(best(train__steps=9, quant__bits=32))["quant.budget_bytes"] == 0
    # A given micro-batch divides the chosen step.
    assert chosen(best(train__steps=9, train__tokens_per_micro=3072))["train.tokens_per_step"] % 3072 == 0


def test_an_overlay_takes_its_settings_from_the_dial(tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text("[model]\nn_layer = 4\n[train]\nsteps = 50\n")
    run = load_preset(f"best+{mine}")
    assert set(DIALLED) - set(run.train.dial) == {"model.n_layer"}
    assert (run.model.n_layer, run.train.steps, run.train.seconds) == (4, 50, 0.0)
    resolved = dial.apply(resolve_vocabulary(run)[0], choose(run, CPU))
    mine.write_text(dump_toml(resolved))
    assert load_preset(f"best+{mine}") == resolved


def test_an_unknown_name_and_an_unresolved_run_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.dial: 'model\.width' is not one of"):
        best(train__dial=["model.width"])
    run = small(tmp_path, train__steps=1)
    text = corpus(run.data)
    with pytest.raises(ConfigError, match="not chosen yet"):
        TrainState(resolve(run, text), text, dial.choose_device(run.train))


def test_no_clock_is_read_without_a_budget_in_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def clock(*_: Any) -> float:
        raise AssertionError("the clock was read")

    monkeypatch.setattr(dial, "measure_speed", clock)
    for budget in ({"train__steps": 20}, {"train__tokens": 40_000}):
        run = small(tmp_path, **budget)
        text = corpus(run.data)
        run = resolve(resolve_vocabulary(run)[0], text)
        assert resolve_dial(run, text) == resolve_dial(run, text)
    run = with_settings(run, {"train.seconds": 5.0})
    with pytest.raises(AssertionError, match="the clock was read"):
        resolve_dial(run, text)


def test_the_speed_is_measured_while_no_other_run_has_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turn = tmp_path / "turn"

    def clock(*_: Any) -> float:
        with turn.open("ab") as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return 1e12

    monkeypatch.setenv(GPU_TURN, str(turn))
    monkeypatch.setattr(dial, "measure_speed", clock)
    run = small(tmp_path, train__seconds=5.0)
    text = corpus(run.data)
    assert resolve_dial(resolve(resolve_vocabulary(run)[0], text), text)[1]
    with turn.open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_seconds_are_measured_and_the_run_ends_within_them_and_resume_keeps_the_choices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, measured = tmp_path / "run", list[float]()
    measure = dial.measure_speed
    monkeypatch.setattr(dial, "measure_speed", lambda *args: measured.append(measure(*args)) or measured[-1])
    summary = train(small(tmp_path, train__seconds=1.5, train__checkpoint_every=1), out, preset="best")
    assert len(measured) == 1
    assert measured[0] > 0
    events = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    reasons = [event["what"] for event in events if event["kind"] == "event" and event["step"] == 0]
    printed = capsys.readouterr().err
    steps = [event for event in events if event["kind"] == "step"]
    longest = max(after["seconds"] - before["seconds"] for before, after in pairwise([{"seconds": 0.0}, *steps]))
    assert 1.5 <= summary["seconds"] < 1.5 + longest
    for name in DIALLED:
        assert any(reason.startswith(f"{name} = ") for reason in reasons)
        assert (f"{name} = " in printed) == (name != "data.vocab")  # the tokenizer is given
    config = (out / "config.toml").read_text()
    assert tomllib.loads(config)["train"]["dial"] == []
    assert tomllib.loads(config)["model"]["d_model"] == SIZES[0].d_model

    monkeypatch.setattr(dial, "choose", lambda *_: pytest.fail("the choices were made again"))
    assert checkpoints(out / "checkpoints")
    resume(out)
    assert (out / "config.toml").read_text() == config


def _resolved(world: World, folder: str) -> dict[str, Any]:
    # Clocks that differ by more than any step of the table.
    dial.measure_speed = lambda run, text, world: 1e9 * 1e4**world.rank
    run = small(Path(folder) / str(world.rank), train__seconds=60.0)
    text = corpus(run.data)
    run, choices = resolve_dial(resolve(resolve_vocabulary(run, world)[0], text), text, world)
    return {choice.name: choice.value for choice in choices} | {"resolved": run.train.dial == ()}


def test_several_ranks_get_the_choices_of_rank_zero(tmp_path: Path) -> None:
    for rank in range(2):
        (tmp_path / str(rank)).mkdir()
    first, second = together(2, _resolved, str(tmp_path))
    assert first == second
    assert (first["model.n_layer"], first["resolved"]) == (SIZES[0].n_layer, True)


def test_a_study_keeps_its_budget_on_little_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arms that are compared at equal time would otherwise end at equal steps."""
    base = small(tmp_path)
    settings = {f"data.{name}": getattr(base.data, name) for name in ("train", "tokenizer", "cache")}
    values = {"name": "small", "question": "Is it?", "preset": "best", "seeds": [1], "baseline": "a"}
    plan = parse_plan(
        values | {"run": [{"name": "a"}, {"name": "b"}], "settings": {**settings, "train.seconds": 60.0}}, "plan"
    )
    monkeypatch.setattr(dial, "measure_speed", lambda *_: 1e14)
    text = corpus(base.data)
    limited = dial.resolve_dial(with_settings(base, {"train.seconds": 60.0}), text)[0].train
    assert (limited.seconds, limited.tokens > 0) == (60.0, True)
    kept = study_run._with_choices(plan, tmp_path / "s").base().train
    assert (kept.seconds, kept.tokens, kept.dial) == (60.0, 0, ())


def test_a_study_resolves_the_dial_once_for_all_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = small(tmp_path)
    settings = {f"data.{name}": getattr(base.data, name) for name in ("train", "tokenizer", "cache")}
    plan = parse_plan(
        {
            "name": "small",
            "question": "Is it?",
            "preset": "best",
            "seeds": [1, 2],
            "baseline": "a",
            "run": [{"name": "a"}, {"name": "b", "settings": {"optim.warmdown": 0.2}}],
            "settings": {**settings, "train.seconds": 60.0},
        },
        "plan",
    )
    speeds = [1e9, 1e14]
    monkeypatch.setattr(dial, "measure_speed", lambda *_: speeds.pop(0))
    commands = list[list[str]]()

    def fail(command: list[str], variables: dict[str, str]) -> subprocess.Popen[bytes]:
        commands.append(command)
        return subprocess.Popen([sys.executable, "-c", "raise SystemExit(2)"])

    monkeypatch.setattr(study_run, "_start", fail)

    def settings_of_runs(plan: Plan) -> dict[str, Run]:
        study_run.run_plan(plan, tmp_path / "s")
        return {
            f"{path.parent.name}/{path.stem}": load_preset(str(path)) for path in (tmp_path / "s").glob("*/seed-*.toml")
        }

    runs = settings_of_runs(plan)
    assert len(runs) == len(commands) == 4
    for name, run in runs.items():
        assert run.train.dial == ()
        assert run.optim.warmdown == (0.6 if name.startswith("a/") else 0.2)
        assert with_settings(run, {"train.seed": 1, "optim.warmdown": 0.6}) == runs["a/seed-1"]
    # The second time the other speed is not measured.
    assert settings_of_runs(plan) == runs
    assert speeds == [1e14]


def test_a_dry_run_shows_the_choices_or_says_that_the_speed_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data.train", str(text_file(tmp_path)), "--data.tokenizer", "bytes", "--data.cache", str(tmp_path / "c")]
    assert main(["train", "best", *data, "--train.steps", "100", "--dry-run", "--train.device", "cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["choices"].keys() == set(DIALLED)
    assert found["choices"]["model.n_layer"]["value"] == SIZES[0].n_layer
    assert main(["train", "best", *data, "--train.seconds", "60", "--dry-run"]) == 0
    assert "the speed is measured at the start" in capsys.readouterr().out
    assert main(["train", "best", *data, "--train.steps", "100", "--dry-run", "--train.device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "model.n_layer = 4: " in printed
    assert "kept in the artifact" in printed
    # The dial of `cpu` leaves its size alone, so that is printed without a measured speed.
    assert main(["train", "cpu", *data, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "then chooses optim.muon_weight_decay, optim.adam_weight_decay, train.tokens\n" in printed
    assert "kept in the artifact" in printed
    assert main(["train", "cpu", "--data.tokenizer", "bytes", "--train.steps", "9", "--dry-run"]) == 0  # without a text
    assert "the text is read at the start of training; the dial then" in capsys.readouterr().out
    assert main(["train", "cpu", *data, "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["dial"] == ["optim.muon_weight_decay", "optim.adam_weight_decay", "train.tokens"]
    bytes_alone = with_settings(load_preset("cpu"), {"data.tokenizer": "bytes"})
    assert found["parameters"]["kept"] == model_size(bytes_alone).counts["kept"]
