"""Presets: every shipped one loads, builds and is commented; the published two have exactly the published sizes."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from importlib import resources
from pathlib import Path

import pytest
import torch

from jepamba.config import Data, Model, Run, Train, from_dict, to_dict, with_settings
from jepamba.errors import UserError
from jepamba.jepa import JepaHeads
from jepamba.model import LanguageModel, count_by_component
from jepamba.presets import dump_toml, load_preset, preset_names

FOLDER = resources.files("jepamba.presets")
OVERLAYS = ["sigreg-lewm", "sigreg-submission"]
BASES = [name for name in preset_names() if name not in OVERLAYS]

PUBLISHED = [
    # preset, kept, training-only; some parts by hand from openai/parameter-golf, pull request 903
    (
        "submission-bpe",
        32_816_684,
        4_099_200,
        {
            "embedding": 8192 * 336,
            "embedding projection": 336 * 640,
            "head projection": 640 * 336,
            "vocabulary bias": 8192,
            "mixer input": 10 * 640 * (640 + 640 + 64 + 64 + 10),
            "mixer output": 10 * 640 * 640,
            "convolution": 10 * (640 + 64 + 64) * (4 + 1),
            "state-space scalars": 10 * 3 * 10,
            "gated norm": 10 * 640,
            "MLP": 5 * 2 * 640 * 2560,
            "residual mixes and scales": 10 * 3 * 640 + 5 * 640,
            "U-Net skips": 5 * 640,
        },
    ),
    (
        "submission-byte",
        37_007_208,
        5_902_080,
        {
            "embedding": 256 * 256,
            "embedding projection": 256 * 768,
            "head projection": 768 * 256,
            "vocabulary bias": 256,
            "mixer input": 10 * 768 * (768 + 768 + 64 + 64 + 12),
            "mixer output": 10 * 768 * 768,
            "convolution": 10 * (768 + 64 + 64) * (4 + 1),
            "state-space scalars": 10 * 3 * 12,
            "gated norm": 10 * 768,
            "MLP": 5 * 2 * 768 * 2304,
            "residual mixes and scales": 10 * 3 * 768 + 5 * 768,
            "U-Net skips": 5 * 768,
        },
    ),
]


@pytest.mark.parametrize(("name", "kept", "training_only", "expected"), PUBLISHED, ids=["bpe", "byte"])
def test_published_presets_have_exactly_the_published_parameters(
    name: str, kept: int, training_only: int, expected: dict[str, int]
) -> None:
    run = load_preset(name)
    model = LanguageModel(run.model, run.quant)
    heads = JepaHeads(run.jepa, run.model.d_model)
    model_parts, heads_parts = (
        count_by_component(model.named_parameters()),
        count_by_component(heads.named_parameters()),
    )
    print(f"\n{name}: parameters")
    for title, table in (("kept", model_parts), ("training-only", heads_parts)):
        for part, count in table.items():
            print(f"  {part:<28}{count:>12,}")
        print(f"  {title + ', in all':<28}{sum(table.values()):>12,}")
    assert model_parts == expected
    assert sum(model_parts.values()) == sum(p.numel() for p in model.parameters()) == kept
    assert sum(heads_parts.values()) == sum(p.numel() for p in heads.parameters()) == training_only


@pytest.mark.parametrize("name", [base for base in BASES if not base.startswith("submission")])
def test_every_other_preset_builds(name: str) -> None:
    run = load_preset(name)
    vocab = run.model.vocab_size or (256 if run.data.tokenizer == "bytes" else run.data.vocab)
    model = LanguageModel(dataclasses.replace(run.model, vocab_size=vocab), run.quant)
    assert sum(count_by_component(model.named_parameters()).values()) == sum(p.numel() for p in model.parameters())
    assert run.jepa.active == (name not in ("best", "cpu", "quick"))
    JepaHeads(run.jepa, run.model.d_model)


def test_the_cpu_preset_has_about_two_million_parameters() -> None:
    run = load_preset("cpu")
    model = LanguageModel(dataclasses.replace(run.model, vocab_size=run.data.vocab), run.quant)
    assert 1_500_000 < sum(p.numel() for p in model.parameters()) < 2_100_000


@pytest.mark.parametrize("name", preset_names())
def test_every_key_of_a_shipped_preset_is_commented(name: str) -> None:
    text = (FOLDER / f"{name}.toml").read_text()
    assert text.startswith("# ")
    commented = 0
    # A list may have a line for each item.
    text = re.sub(r"\[( *#.*\n)(?:    .*\n)+\]", r"[]\1", text)
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith(("#", "[")):
            continue
        without_strings = re.sub(r'"[^"]*"', '""', line)
        assert re.fullmatch(r"\w+ = [^#]+ *# \S.*", without_strings), f"{name}.toml, line {number}: no comment: {line}"
        commented += 1
    assert commented == sum(len(section) for section in tomllib.loads(text).values())


def test_shipped_presets() -> None:
    assert {"cpu", "quick", "submission-bpe", "submission-byte", *OVERLAYS} <= set(preset_names())
    assert preset_names() == sorted(preset_names())


def test_the_published_configurations() -> None:
    bpe, byte = load_preset("submission-bpe"), load_preset("submission-byte")
    assert (bpe.model.vocab_size, bpe.model.embed_dim, bpe.model.tie) == (8192, 336, 1)
    assert (byte.model.vocab_size, byte.model.embed_dim, byte.model.tie) == (256, 256, 1)
    assert (bpe.model.d_model, bpe.model.n_layer, bpe.model.expand) == (640, 10, 1)
    assert (byte.model.d_model, byte.model.n_layer, byte.model.expand) == (768, 10, 1)
    assert (bpe.model.mlp_mult, bpe.model.mlp_every) == (4, 2)
    assert (byte.model.mlp_mult, byte.model.mlp_every) == (3, 2)
    assert (bpe.data.seq_len, byte.data.seq_len) == (1024, 8192)
    assert bpe.train.tokens_per_step == byte.train.tokens_per_step == 524_288
    assert (bpe.train.steps, byte.train.steps) == (6090, 5730)
    assert (bpe.eval.stride, byte.eval.stride) == (16, 128)
    assert (bpe.jepa.sigreg_projections, byte.jepa.sigreg_projections) == (2 * 336, 2 * 256)
    for run in (bpe, byte):
        assert (run.jepa.rollout_steps, run.jepa.ce_weight, run.jepa.weight, run.jepa.sigreg_weight) == (3, 1, 1, 1)
        assert (run.jepa.sigreg_t_min, run.jepa.sigreg_t_max, run.jepa.sigreg_knots) == (0.2, 4.0, 17)
        assert (run.jepa.sigreg_pool, run.jepa.sigreg_timesteps) == ("timestep", 64)
        assert run.jepa.sigreg_fixed
        assert not run.jepa.sigreg_scale_n
        assert run.model.self_skip  # defect 4, kept here by choice
        assert not run.data.shuffle  # defect 13, kept here by choice
        assert not run.data.reset
        # Defects 1, 2, 3 and 8 are undone here too.
        assert run.optim.train_conv
        assert not run.optim.decay_ssm
        assert run.train.masters == "fp32"
        assert (run.quant.fp8_scale, run.quant.vectors, run.quant.bits, run.quant.qat_fraction) == ("row", "bf16", 4, 1)
        assert run.optim.ghost_steps == 10
    for name in ("cpu", "quick"):
        run = load_preset(name)
        assert not run.model.self_skip
        assert run.data.shuffle
        assert run.data.reset
        assert run.jepa.sigreg_pool == "positions"


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("base", BASES)
def test_an_overlay_changes_its_settings_alone(base: str, overlay: str) -> None:
    changes = {
        f"{name}.{key}": value
        for name, section in tomllib.loads((FOLDER / f"{overlay}.toml").read_text()).items()
        for key, value in section.items()
    }
    assert load_preset(f"{base}+{overlay}") == with_settings(load_preset(base), changes)


def test_the_last_overlay_wins(tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text("[jepa]\nsigreg_knots = 9\n[model]\nn_layer = 3\n")
    lewm = load_preset("quick+sigreg-submission+sigreg-lewm").jepa
    assert (lewm.sigreg_weight, lewm.sigreg_t_min, lewm.sigreg_knots) == (0.09, 0.0, 17)
    run = load_preset(f"quick+sigreg-lewm+{mine}")
    assert (run.jepa.sigreg_weight, run.jepa.sigreg_knots, run.model.n_layer) == (0.09, 9, 3)
    assert load_preset(f"{mine}").model == Model(n_layer=3)


def test_lewm_sigreg_as_published() -> None:
    jepa = load_preset("cpu+sigreg-lewm").jepa
    assert (jepa.sigreg_weight, jepa.sigreg_t_min, jepa.sigreg_t_max, jepa.sigreg_knots) == (0.09, 0.0, 3.0, 17)
    assert (jepa.sigreg_projections, jepa.sigreg_fixed, jepa.sigreg_scale_n) == (1024, False, True)


@pytest.mark.parametrize("name", ["", "nope", "../presets/cpu", "cpu+nope", "cpu+", "+cpu", "nope.toml", "/etc/passwd"])
def test_an_unknown_preset_is_refused_with_the_list(name: str) -> None:
    with pytest.raises(UserError, match=r"(unknown preset|no such file).*quick") as caught:
        load_preset(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"[model\n", "not TOML"),
        (b"[model]\nd_model = 128\nd_model = 256\n", "not TOML"),
        (b'[data]\ntrain = "\xff"\n', "not TOML"),
        (b"[model]\nwidth = 3\n", "unknown setting model.width"),
        (b"[modell]\nd_model = 3\n", "unknown section"),
        (b"model = 3\n", "must be a table"),
        (b'[model]\nd_model = "wide"\n', "model.d_model = 'wide': must be of type int"),
        (b"[model]\nd_model = -1\n", "model.d_model = -1: must be at least 1"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    for name in (str(path), f"quick+{path}"):
        with pytest.raises(UserError, match=complaint):
            load_preset(name)


@pytest.mark.parametrize("name", [*BASES, "cpu+sigreg-lewm"])
def test_a_dumped_run_loads_as_the_same_run(name: str, tmp_path: Path) -> None:
    run = load_preset(name)
    path = tmp_path / "config.toml"
    path.write_text(dump_toml(run))
    assert load_preset(str(path)) == run
    assert tomllib.loads(path.read_text()).keys() == to_dict(run).keys()


def test_awkward_values_survive_the_dump(tmp_path: Path) -> None:
    run = Run(data=Data(train='a "quoted" \\ path\n♥'), train=Train(seconds=1e-300, steps=1))
    path = tmp_path / "config.toml"
    path.write_text(dump_toml(run), encoding="utf-8")
    assert load_preset(str(path)) == run
    assert from_dict(tomllib.loads(dump_toml(run))) == run


@pytest.mark.parametrize(
    ("content", "steps", "seconds"),
    [
        ("[train]\nsteps = 2000\n", 2000, 0.0),
        ("[train]\nseconds = 60.0\n", 0, 60.0),
        ("[train]\nsteps = 2000\nseconds = 60.0\n", 2000, 60.0),
        ("[train]\nsteps = 0\n", 0, 1140.0),
        ("[train]\nseed = 7\n", 0, 1140.0),
    ],
)
def test_an_overlay_with_a_budget_drops_the_preset_s(tmp_path: Path, content: str, steps: int, seconds: float) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text(content)
    train = load_preset(f"cpu+{mine}").train
    assert (train.steps, train.seconds) == (steps, seconds)


def test_a_run_s_own_config_as_an_overlay_brings_its_budget(tmp_path: Path) -> None:
    written = tmp_path / "config.toml"
    written.write_text(dump_toml(with_settings(load_preset("cpu"), {"train.steps": 2000})))
    assert load_preset(f"cpu+{written}") == load_preset(str(written))
    assert (load_preset(str(written)).train.steps, load_preset(str(written)).train.seconds) == (2000, 0.0)


def test_a_byte_order_mark_is_no_content(tmp_path: Path) -> None:
    file = tmp_path / "marked.toml"
    file.write_text("[train]\nsteps = 7\n", encoding="utf-8-sig")
    assert load_preset(str(file)).train.steps == 7


@pytest.mark.parametrize(("name", "kept", "tokens"), [("cpu-3m", 3_000_784, 8192), ("recipe-33m", 32_816_684, 65_536)])
def test_fixed_configurations_of_the_benchmarks(name: str, kept: int, tokens: int) -> None:
    run = load_preset(str(Path(__file__).parents[1] / "bench" / f"{name}.toml"))
    sized = with_settings(run, {"model.vocab_size": 8192})
    with torch.device("meta"):
        model = LanguageModel(sized.model, sized.quant)
    assert (sum(p.numel() for p in model.parameters()), run.train.tokens_per_step) == (kept, tokens)
