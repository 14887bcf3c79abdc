"""The model against its definition in float64, and what a sequence model owes: causality, resets, carried state."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import model_oracle as oracle
from jepamba.config import Model, Quant
from jepamba.model import LanguageModel, State, component_of
from jepamba.model.language_model import Block
from jepamba.model.layers import Mlp
from jepamba.model.mixer import Mamba2

SMALL: dict[str, Any] = {
    "vocab_size": 37,
    "embed_dim": 12,
    "d_model": 16,
    "n_layer": 4,
    "d_state": 4,
    "headdim": 4,
    "mlp_mult": 2.0,
    "chunk_size": 8,
}


def small(**changes: Any) -> Model:
    return Model(**{**SMALL, **changes})


def masters(model: LanguageModel) -> dict[str, Tensor]:
    return {name: weight.master for name, weight in model.quant_weights().items()}


def disturb(module: torch.nn.Module) -> None:
    """Move every parameter off its initial value, so that zeros and ones hide nothing."""
    g = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for value in module.parameters():
            value += 0.2 * torch.randn(value.shape, generator=g)


def disturbed(config: Model) -> LanguageModel:
    """A model in training mode without fake quantization: it computes with its fp32 weights."""
    model = LanguageModel(config, Quant(large=64))
    disturb(model)
    return model.train()


def tokens_and_reset(config: Model, batch: int, length: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(12)
    tokens = torch.randint(config.vocab_size, (batch, length), generator=g)
    reset = torch.rand(batch, length, generator=g) < 0.1
    reset[0, 0] = True
    reset[-1, 5] = reset[-1, 6] = True
    return tokens, reset


@pytest.mark.parametrize("resets", [pytest.param(False, marks=pytest.mark.slow), True], ids=["stream", "resets"])
@pytest.mark.parametrize("changes", oracle.VARIANTS, ids=str)
def test_the_model_is_what_the_spec_says(changes: dict[str, Any], resets: bool) -> None:
    config = small(**changes)
    model = disturbed(config)
    tokens, reset = tokens_and_reset(config, 2, 21)
    h, _ = model(tokens, reset if resets else None)
    logits = model.logits(h)
    weights = oracle.weights_of(model)
    for b in range(2):
        truth = oracle.latents(tokens[b], weights, config, reset[b].tolist() if resets else [False] * 21)
        assert (h[b].double() - truth).norm() < 1e-5 * truth.norm()
        capped = oracle.logits(truth, weights, config)
        assert (logits[b].double() - capped).norm() < 1e-5 * capped.norm()
    assert logits.dtype == torch.float32
    if config.softcap != "off":
        assert logits.abs().max() <= config.cap


@pytest.mark.parametrize("changes", [{}, {"n_layer": 5, "self_skip": True}], ids=str)
def test_the_latents_of_every_layer_are_what_the_spec_says(changes: dict[str, Any]) -> None:
    config = small(**changes)
    model = disturbed(config)
    tokens, reset = tokens_and_reset(config, 2, 21)
    found, state = model.activations(tokens, reset)
    h, same_state = model(tokens, reset)
    assert torch.equal(found.after(0), h)
    assert torch.equal(found.after(config.n_layer), h)
    for ours, theirs in zip(state, same_state, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    for layer in range(1, config.n_layer + 1):
        latents, _ = model(tokens, reset, layer=layer)
        assert torch.equal(found.after(layer), latents)
        for b in range(2):
            truth = oracle.latents(tokens[b], oracle.weights_of(model), config, reset[b].tolist(), layer)
            assert (latents[b].double() - truth).norm() < 1e-5 * truth.norm()
    # Nothing above a layer has a gradient from its latents; what is below has one.
    found.after(2).square().sum().backward()
    for index, block in enumerate(model.blocks):
        used = [p.grad is not None and bool(p.grad.any()) for p in block.parameters()]
        assert all(used) if index < 2 else not any(used)


@pytest.mark.parametrize("expand", [1, 2])
@pytest.mark.parametrize("groups", [1, 2])
def test_mixer_by_its_recurrence(expand: int, groups: int) -> None:
    config = small(expand=expand, ngroups=groups)
    mixer = Mamba2(config, Quant()).train()
    disturb(mixer)
    u = torch.randn(2, 19, config.d_model)
    reset = torch.zeros(2, 19, dtype=torch.bool)
    reset[0, 8] = reset[1, 3] = reset[1, 5] = True
    y, state = mixer(u, torch.ones(u.shape[-1]), reset, mixer.initial_state(2))
    for b in range(2):
        truth = oracle.mamba2(u[b].double(), oracle.weights_of(mixer), config, reset[b].tolist())
        assert (y[b].double() - truth).norm() < 1e-5 * truth.norm()
    assert state.conv_BCW.shape == (2, expand * 16 + 2 * groups * 4, 3)
    assert state.ssm_BHPN.shape == (2, expand * 4, 4, 4)


def test_in_proj_rows_are_z_x_B_C_dt() -> None:
    config = small()
    mixer = Mamba2(config, Quant()).train()
    u, nothing = torch.randn(1, 6, 16), mixer.initial_state(1)
    before, _ = mixer(u, torch.ones(u.shape[-1]), None, nothing)
    assert mixer.in_proj.weight.master.shape == (16 + 16 + 4 + 4 + 4, 16)
    with torch.no_grad():
        mixer.in_proj.weight.master[:16] = 0  # z: SiLU(0) = 0 closes the gate
        assert mixer(u, torch.ones(u.shape[-1]), None, nothing)[0].abs().max() == 0
    torch.manual_seed(0)
    mixer = Mamba2(config, Quant()).train()
    with torch.no_grad():
        mixer.in_proj.weight.master[32:40] = 0  # B and C without input or bias: nothing but D·x is left
        mixer.conv_bias.master[16:] = 0
        mixer.D.master.zero_()
        assert mixer(u, torch.ones(u.shape[-1]), None, nothing)[0].abs().max() == 0
        mixer.D.master.fill_(1)
        assert mixer(u, torch.ones(u.shape[-1]), None, nothing)[0].abs().max() > 0.01
    assert before.abs().max() > 0.01


@pytest.mark.parametrize("kind", ["relu2", "swiglu"])
def test_mlp_formula_and_fresh_silence(kind: str) -> None:
    config = small(mlp=kind, mlp_mult=3.0)
    mlp = Mlp(config, Quant()).train()
    x = torch.randn(2, 5, config.d_model)
    assert mlp(x, torch.ones(x.shape[-1]), torch.zeros_like(x)).abs().max() == 0
    assert mlp.up.weight.master.shape == (48, 16)
    disturb(mlp)
    truth = oracle.mlp(x.double(), oracle.weights_of(mlp), config)
    assert torch.allclose(mlp(x, torch.ones(x.shape[-1]), torch.zeros_like(x)).double(), truth, atol=1e-6, rtol=1e-5)
    assert {name for name, _ in mlp.named_parameters()} == {"up.weight.master", "down.weight.master"} | (
        {"gate.weight.master"} if kind == "swiglu" else set()
    )


@pytest.mark.parametrize(("every", "with_mlp"), [(1, [0, 1, 2, 3, 4]), (2, [0, 2, 4]), (3, [0, 3]), (9, [0])])
def test_mlp_schedule(every: int, with_mlp: list[int]) -> None:
    model = LanguageModel(small(n_layer=5, mlp_every=every), Quant())
    names = model.quant_weights()
    assert [i for i in range(5) if f"blocks.{i}.mlp.down.weight" in names] == with_mlp
    assert [i for i in range(5) if f"blocks.{i}.mlp_scale" in names] == with_mlp


@pytest.mark.parametrize(
    ("n_layer", "self_skip", "pairs"),
    [
        (1, False, {}),
        (2, False, {}),
        (2, True, {1: 0}),
        (3, True, {1: 0}),
        (4, False, {3: 0}),
        (4, True, {2: 1, 3: 0}),
        (5, False, {3: 0}),
        (5, True, {2: 1, 3: 0}),
        (10, False, {6: 3, 7: 2, 8: 1, 9: 0}),
        (10, True, {5: 4, 6: 3, 7: 2, 8: 1, 9: 0}),
        (13, False, {7: 4, 8: 3, 9: 2, 10: 1, 11: 0}),
    ],
)
def test_skips_pair_decoder_with_encoder_blocks(n_layer: int, self_skip: bool, pairs: dict[int, int]) -> None:
    model = LanguageModel(small(n_layer=n_layer, self_skip=self_skip), Quant())
    assert model.skips.source == pairs
    named = masters(model)
    if pairs:
        assert named["skips.skip_weight"].shape == (len(pairs), 16)
        assert (named["skips.skip_weight"] == 1).all()
    else:
        assert "skips.skip_weight" not in named
    off = LanguageModel(small(n_layer=n_layer, unet=False), Quant()).quant_weights()
    assert "skips.skip_weight" not in off


def test_the_first_skip_doubles_its_input_and_is_there_only_on_request() -> None:
    def skips(config: Model) -> tuple[list[Any], list[Tensor]]:
        """What each block was given as its skip, and its output."""
        model, given, outputs = disturbed(config), [], []
        if config.self_skip:
            with torch.no_grad():
                model.skips.skip_weight.master.fill_(1.0)
        for block in model.blocks:
            block.register_forward_pre_hook(lambda module, args: given.append((args[0], args[2])))
            block.register_forward_hook(lambda module, args, out: outputs.append(out[0].x_BTD))
        with torch.no_grad():
            model(tokens_and_reset(config, 2, 9)[0])
        return given, outputs

    given, outputs = skips(small(n_layer=4, self_skip=True))
    (x, (first, weight)), (_, (second, _)) = given[2], given[3]
    assert x is first is outputs[1]
    assert torch.equal(weight, torch.ones(16))
    assert second is outputs[0]
    assert given[0][1] is given[1][1] is None
    given, outputs = skips(small(n_layer=4))
    assert given[2] == (outputs[1], None)
    assert given[3][1][0] is outputs[0]


def test_fresh_weights_have_the_spec_distributions() -> None:
    config = Model(vocab_size=2000, embed_dim=32, d_model=512, n_layer=2, headdim=1, d_state=2, mlp_mult=1.0)
    model = LanguageModel(config, Quant())
    named = masters(model)
    assert named["token_embed"].std().item() == pytest.approx(0.02, rel=0.02)
    assert named["token_embed"].mean().abs() < 2e-4
    for i in range(2):
        mix = named[f"blocks.{i}.mix"]
        assert (mix[0] == 1).all()
        assert (mix[1] == 0).all()
        for name in ("ssm_scale", "mixer.norm_weight", "mixer.D"):
            assert (named[f"blocks.{i}.{name}"] == 1).all()
        A = named[f"blocks.{i}.mixer.A_log"].exp()
        assert A.min() >= 1 - 1e-5
        assert A.max() <= 16 + 1e-4
        assert A.mean().item() == pytest.approx(8.5, abs=4 * (15 / math.sqrt(12)) / math.sqrt(512))
        dt = torch.nn.functional.softplus(named[f"blocks.{i}.mixer.dt_bias"].double())
        assert dt.min() >= 1e-3 * 0.999
        assert dt.max() <= 0.1 * 1.001
        log_dt = dt.log()
        middle = (math.log(1e-3) + math.log(0.1)) / 2
        assert log_dt.mean().item() == pytest.approx(middle, abs=4 * (math.log(100) / math.sqrt(12)) / math.sqrt(512))
        # Log-uniform: a quarter of the values in each quarter of the range.
        quarters = ((log_dt - math.log(1e-3)) / math.log(100) * 4).floor().clamp(0, 3)
        assert torch.bincount(quarters.long()).min() > 512 / 4 * 0.7
    assert (named["blocks.0.mlp_scale"] == 1).all()
    assert (named["blocks.0.mlp.down.weight"] == 0).all()
    assert (named["head.vocab_bias"] == 0).all()
    assert not torch.equal(named["blocks.0.mixer.A_log"], named["blocks.1.mixer.A_log"])


def test_one_seed_gives_one_model() -> None:
    models = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        models.append(LanguageModel(small(), Quant()))
    first, same, other = (masters(model) for model in models)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["token_embed"], other["token_embed"])


@pytest.mark.parametrize("tie", [0, 1, 2, 3])
@pytest.mark.parametrize("embed_dim", [12, 16])
def test_tie_modes_shapes_and_gradients(tie: int, embed_dim: int) -> None:
    config = small(tie=tie, embed_dim=embed_dim)
    model = disturbed(config)
    shapes = {name: tuple(p.shape) for name, p in masters(model).items() if not name.startswith(("blocks", "skips"))}
    expected = {"token_embed": (37, embed_dim), "head.vocab_bias": (37,)}
    if embed_dim != 16:
        expected["embed_proj.weight"] = (16, embed_dim)
        if tie != 0:
            expected["head.embed_proj_rev.weight"] = (embed_dim, 16)
    if tie == 3:
        expected["head.embed_proj_rev.weight"] = (embed_dim, 16)
    if tie == 0:
        expected["head.separate.weight"] = (37, 16)
    if tie == 2:
        expected["head.correction"] = (37, embed_dim)
    assert shapes == expected
    tokens, reset = tokens_and_reset(config, 2, 13)
    targets = (tokens + 5) % 37
    h, _ = model(tokens, reset)
    model.loss(h, targets, 1e-2).total.backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.abs().max() > 0, name
    # A symbol that is never read is in the loss through the head alone: tied, its row learns; untied, it does not.
    unread = [v for v in range(37) if not (tokens == v).any()]
    assert unread
    assert model.token_embed.master.grad is not None
    assert (model.token_embed.master.grad[unread].abs().max() > 0) == (tie != 0)


@pytest.mark.parametrize("tie", [0, 1, 2, 3])
@pytest.mark.parametrize("softcap", ["poly", "tanh", "off"])
def test_the_loss_is_the_cross_entropy_of_the_logits(tie: int, softcap: str) -> None:
    config = small(tie=tie, softcap=softcap, cap=3.0)
    model = disturbed(config)
    tokens, reset = tokens_and_reset(config, 2, 13)
    targets = (tokens * 3 + 1) % 37
    h, _ = model(tokens, reset)
    losses = model.loss(h, targets, 0.25)
    logits = oracle.logits(h.detach().double(), oracle.weights_of(model), config)
    lse = logits.logsumexp(-1)
    ce = (lse - logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1)).mean()
    assert losses.ce.item() == pytest.approx(ce.item(), rel=1e-5)
    assert losses.z.item() == pytest.approx(lse.square().mean().item(), rel=1e-5)
    assert losses.total.item() == pytest.approx((ce + 0.25 * lse.square().mean()).item(), rel=1e-5)


@pytest.mark.parametrize("resets", [False, True], ids=["stream", "resets"])
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("t", [0, 1, 7, 8, 20, 29])
def test_causality_of_the_whole_model(t: int, mode: str, resets: bool) -> None:
    config = small(n_layer=5, self_skip=True, mlp_every=1)
    model = disturbed(config).train(mode == "train")
    tokens, reset = tokens_and_reset(config, 2, 30)
    reset[:, t:] = False  # whatever follows t lies in its document
    changed = tokens.clone()
    changed[:, t] = (tokens[:, t] + 1) % 37
    where = reset if resets else None
    with torch.no_grad():
        before, after = model(tokens, where)[0], model(changed, where)[0]
        logits_before, logits_after = model.logits(before), model.logits(after)
    assert torch.equal(before[:, :t], after[:, :t])
    assert torch.equal(logits_before[:, :t], logits_after[:, :t])
    for later in range(t, 30):
        assert not torch.equal(before[:, later], after[:, later])


@pytest.mark.parametrize("at", [1, 3, 8, 17])
def test_a_reset_hides_the_past(at: int) -> None:
    config = small(n_layer=5)
    model = disturbed(config)
    tokens, _ = tokens_and_reset(config, 2, 24)
    reset = torch.zeros(2, 24, dtype=torch.bool)
    reset[:, at] = True
    other = tokens.clone()
    other[:, :at] = (tokens[:, :at] + 7) % 37
    with torch.no_grad():
        h, state = model(tokens, reset)
        h_other, state_other = model(other, reset)
        stale = [type(s)(s.conv_BCW + 3, s.ssm_BHPN - 5) for s in model.initial_state(2)]
        h_stale, state_stale = model(tokens, reset, stale)
        alone, state_alone = model(tokens[:, at:], None)
        unmarked = model(tokens, None)[0]
    # The decays before a reset share a running sum with those after it in its chunk: rounding, and nothing else.
    past = 0.0 if at % config.chunk_size == 0 else 3e-6
    assert (h[:, at:] - h_other[:, at:]).abs().max() <= past
    assert (h[:, at:] - h_stale[:, at:]).abs().max() <= past
    assert not torch.equal(h[:, :at], h_stale[:, :at])
    assert torch.allclose(h[:, at:], alone, atol=2e-5)
    assert not torch.allclose(h[:, at:], unmarked[:, at:], atol=1e-3)
    for ours, others, stales, alones in zip(state, state_other, state_stale, state_alone, strict=True):
        for a, b, c, d in zip(ours, others, stales, alones, strict=True):
            assert (a - b).abs().max() <= past
            assert (a - c).abs().max() <= past
            assert torch.allclose(a, d, atol=2e-5)


def test_no_gradient_crosses_a_reset() -> None:
    config = small(n_layer=3)
    model = disturbed(config)
    tokens = torch.arange(24).unsqueeze(0)  # every position has a row of the embedding to itself
    reset = torch.zeros(1, 24, dtype=torch.bool)
    reset[0, 8] = True
    model(tokens, reset)[0][:, 8:].square().mul(torch.linspace(-1, 1, 16)).sum().backward()
    grad = model.token_embed.master.grad
    assert grad is not None
    assert grad[:8].abs().max() <= 1e-6 * grad[8:24].abs().max()
    assert grad[8:24].abs().amin(0).max() > 0


def in_pieces(model: LanguageModel, tokens: Tensor, reset: Tensor | None, cuts: set[int]) -> tuple[Tensor, State]:
    """The latents of the sequences, read in pieces that end at `cuts`, and the last state."""
    state, pieces = model.initial_state(len(tokens)), []
    for start, stop in itertools.pairwise([0, *sorted(cuts), tokens.shape[1]]):
        piece = None if reset is None else reset[:, start:stop]
        h, state = model(tokens[:, start:stop], piece, state)
        pieces.append(h)
    return torch.cat(pieces, 1), state


def states_of_pieces_and_whole(model: LanguageModel, cuts: set[int], resets: bool, seed: int) -> tuple[State, State]:
    """The states after a random stream in pieces and as a whole, whose latents must be equal."""
    g = torch.Generator().manual_seed(seed)
    tokens = torch.randint(37, (2, 26), generator=g)
    reset = (torch.rand(2, 26, generator=g) < 0.15) if resets else None
    with torch.no_grad():
        whole, final = model(tokens, reset)
        joined, state = in_pieces(model, tokens, reset, cuts)
    assert torch.allclose(joined, whole, atol=3e-5)
    return state, final


@settings(max_examples=12, deadline=None)
@given(cuts=st.sets(st.integers(1, 25), max_size=8), resets=st.booleans(), seed=st.integers(0, 9))
def test_pieces_with_a_carried_state_equal_the_whole(cuts: set[int], resets: bool, seed: int) -> None:
    state, final = states_of_pieces_and_whole(disturbed(small(n_layer=3, ngroups=2)), cuts, resets, seed)
    for ours, truth in zip(state, final, strict=True):
        assert torch.allclose(ours.conv_BCW, truth.conv_BCW, atol=3e-5)
        assert torch.allclose(ours.ssm_BHPN, truth.ssm_BHPN, atol=3e-5)


@pytest.mark.parametrize("resets", [False, True])
def test_single_steps_equal_the_whole(resets: bool) -> None:
    config = small(n_layer=5, d_conv=4)
    model = disturbed(config).eval()
    tokens, reset = tokens_and_reset(config, 2, 20)
    with torch.no_grad():
        whole, _ = model(tokens, reset if resets else None)
        state = None
        for t in range(20):
            h, state = model(tokens[:, t : t + 1], reset[:, t : t + 1] if resets else None, state)
            assert torch.allclose(h[:, 0], whole[:, t], atol=3e-5)
            assert [s.ssm_BHPN.shape for s in state] == [(2, 4, 4, 4)] * 5  # constant in size


def test_an_empty_reset_mask_changes_nothing_but_rounding() -> None:
    config = small()
    model = disturbed(config)
    tokens, _ = tokens_and_reset(config, 2, 20)
    with torch.no_grad():
        assert torch.allclose(model(tokens, torch.zeros(2, 20, dtype=torch.bool))[0], model(tokens)[0], atol=1e-5)


def test_a_document_is_the_same_wherever_it_lies_in_a_batch() -> None:
    config = small()
    model = disturbed(config)
    tokens, reset = tokens_and_reset(config, 3, 20)
    with torch.no_grad():
        whole = model(tokens, reset)[0]
        for b in range(3):
            assert torch.allclose(model(tokens[b : b + 1], reset[b : b + 1])[0][0], whole[b], atol=1e-5)


@pytest.mark.parametrize("softcap", ["poly", "tanh"])
def test_logits_are_capped_and_finite_at_any_scale(softcap: str) -> None:
    config = small(softcap=softcap)
    model = disturbed(config)
    with torch.no_grad():
        model.head.vocab_bias.master.copy_(torch.linspace(-1e6, 1e6, 37))
        logits = model.logits(model(tokens_and_reset(config, 2, 9)[0])[0])
    assert torch.isfinite(logits).all()
    assert logits.abs().max() <= 15.0
    assert logits.min() < -14.99
    assert logits.max() > 14.99


@pytest.mark.parametrize("embed_dim", [12, 16])
@pytest.mark.parametrize(("batch", "length"), [(1, 7), (2, 40)])
def test_the_residual_stream_is_in_the_compute_dtype(embed_dim: int, batch: int, length: int) -> None:
    # 16 wide: with and without a projection of the embedding. Few tokens have their outputs scaled, many the weights.
    config = small(embed_dim=embed_dim)
    model = disturbed(config)
    tokens, reset = tokens_and_reset(config, batch, length)
    seen: list[Tensor] = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, args, out: seen.extend((args[0], args[1], *out[0])))
    truth, _ = model(tokens, reset)
    assert {value.dtype for value in (*seen, truth)} == {torch.float32}
    seen.clear()
    with torch.autocast("cpu", torch.bfloat16):
        h, _ = model(tokens, reset)
    assert {value.dtype for value in (*seen, h)} == {torch.bfloat16}
    assert (h - truth).norm() < 0.03 * truth.norm()
    h.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.blocks.parameters())


def test_every_parameter_has_a_part_and_an_unknown_name_has_none() -> None:
    for tie in (0, 2, 3):
        for name, _ in LanguageModel(small(tie=tie, mlp="swiglu"), Quant()).named_parameters():
            assert component_of(name)
    with pytest.raises(KeyError):
        component_of("blocks.0.attention.weight")


def test_a_model_without_a_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="vocab_size"):
        LanguageModel(small(vocab_size=0), Quant())


def test_a_block_is_the_formula() -> None:
    config = small(mlp="swiglu")
    block = Block(config, Quant(), index=0).train()
    disturb(block)
    x, x0 = torch.randn(1, 11, 16), torch.randn(1, 11, 16)
    reset = torch.zeros(1, 11, dtype=torch.bool)
    reset[0, 4] = True
    (y, *skipped), _ = block(x, x0, None, reset, None)
    assert torch.equal(skipped[0], x0)
    assert torch.equal(skipped[1], x)
    truth = oracle.block(x[0].double(), x0[0].double(), oracle.weights_of(block), config, 0, reset[0].tolist())
    assert torch.allclose(y[0].double(), truth, atol=1e-5)
