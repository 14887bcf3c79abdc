"""Blocks with sliding-window attention: window, resets, a carried state of constant size, generation and compression.

test_model.py compares the model with its definition in float64.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress_cases import coded
from jepamba.artifact import load_artifact
from jepamba.compress import Compressor
from jepamba.config import ConfigError, Quant
from jepamba.data import corpus
from jepamba.evaluate import score_carried, score_plain
from jepamba.generate import PromptReader
from jepamba.model.attention import SlidingAttention
from jepamba.model.language_model import LanguageModel
from jepamba.train import train
from test_model import disturb, disturbed, small, states_of_pieces_and_whole, tokens_and_reset
from tiny import text_file, tiny

HYBRID = {"n_layer": 4, "attention_every": 2, "attention_window": 6}


@pytest.mark.parametrize("window", [1, 2, 5, 9])
def test_a_token_reads_exactly_its_window(window: int) -> None:
    mixer = SlidingAttention(small(attention_window=window), Quant()).train()
    disturb(mixer)
    u = torch.randn(1, 23, 16)
    for t in (0, 4, 15):
        changed = u.clone()
        changed[0, t] += 1
        with torch.no_grad():
            outputs = [mixer(x, torch.ones(16), None, None)[0][0] for x in (u, changed)]
        differs = (outputs[0] != outputs[1]).any(-1).nonzero().flatten().tolist()
        assert differs == list(range(t, min(t + window, 23)))


@settings(max_examples=12, deadline=None)
@given(cuts=st.sets(st.integers(1, 25), max_size=25), resets=st.booleans(), seed=st.integers(0, 9))
def test_pieces_with_a_carried_state_equal_the_whole(cuts: set[int], resets: bool, seed: int) -> None:
    model = disturbed(small(**HYBRID))
    state, final = states_of_pieces_and_whole(model, cuts, resets, seed)
    for ours, truth, empty in zip(state, final, model.initial_state(2), strict=True):
        for a, b, c in zip(ours, truth, empty, strict=True):
            assert torch.allclose(a, b, atol=3e-5)
            assert a.shape == c.shape


@pytest.mark.parametrize("at", [1, 3, 8, 17])
def test_a_reset_hides_the_past_and_lets_no_gradient_through(at: int) -> None:
    model = disturbed(small(**HYBRID))
    tokens, _ = tokens_and_reset(small(), 2, 24)
    reset = torch.zeros(2, 24, dtype=torch.bool)
    reset[:, at] = True
    with torch.no_grad():
        stale = model(tokens.flip(1))[1]
        h, state = model(tokens, reset)
        h_stale, state_stale = model(tokens, reset, stale)
        alone = model(tokens[:, at:], None)[0]
        # A following piece must not see the earlier document through the state either.
        more, more_stale = model(tokens, None, state)[0], model(tokens, None, state_stale)[0]
    assert torch.allclose(h[:, at:], h_stale[:, at:], atol=1e-5)
    assert torch.allclose(h[:, at:], alone, atol=2e-5)
    assert not torch.allclose(h[:, :at], h_stale[:, :at], atol=1e-3)
    assert torch.allclose(more, more_stale, atol=1e-5)
    rows = torch.arange(24).unsqueeze(0)  # every position has a row of the embedding to itself
    model(rows, reset[:1])[0][:, at:].square().mul(torch.linspace(-1, 1, 16)).sum().backward()
    grad = model.token_embed.master.grad
    assert grad is not None
    assert grad[:at].abs().max() <= 1e-6 * grad[at:24].abs().max()


def test_a_run_trains_and_its_artifact_scores_generates_and_compresses(tmp_path: Path) -> None:
    changes = {
        "model__attention_every": 2,
        "model__attention_window": 12,
        "jepa__weight": 0.0,
        "jepa__sigreg_weight": 0.0,
    }
    run = tiny(text_file(tmp_path), **changes)
    train(run, tmp_path / "run")
    path = tmp_path / "run/artifact.jepa"
    artifact = load_artifact(path)
    tokens = corpus(run.data).val
    plain, carried = (score(artifact.model, tokens, 32, limit=500).bpb for score in (score_plain, score_carried))
    assert 0 < carried < 20
    assert carried != plain
    ids = torch.from_numpy(tokens.read(0, 90).astype("int64"))
    with torch.no_grad():
        whole = artifact.model.logits(artifact.model(ids[None])[0])[0, -1]
    reader = PromptReader(artifact.model)
    for token in ids.tolist():
        step = reader.read([token])
    assert (step - whole).abs().max() < 1e-4
    compressor = Compressor.open(path)
    data = b"one of them reads a window, the other a state; " * 9
    assert compressor.decompress(coded(compressor, data, 2)) == data


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_every": -1}, "attention_every = -1"),
        ({"attention_window": 0}, "attention_window = 0"),
        ({"attention_every": 2, "headdim": 1}, "even number of channels"),
    ],
)
def test_impossible_values_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small(**changes)


def test_parameters_are_three_projections_and_one() -> None:
    weights = LanguageModel(small(**HYBRID), Quant()).quant_weights()
    assert {name.split(".")[1] for name in weights if ".mixer.A_log" in name} == {"0", "2"}
    assert {name for name in weights if name.startswith("blocks.1.mixer")} == {
        "blocks.1.mixer.in_proj.weight",
        "blocks.1.mixer.out_proj.weight",
    }
    assert weights["blocks.1.mixer.in_proj.weight"].master.shape == (48, 16)
