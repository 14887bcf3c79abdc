"""The latent objective: roll-out, prediction error, heads, and the sum of all terms, each against its definition."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from jepamba.config import Jepa, Model, Quant
from jepamba.jepa import (
    JepaHeads,
    LossTerms,
    LossWeights,
    compute_losses,
    latent_weights,
    prediction_error,
    sample_projections,
    sigreg,
    trailing_mean,
    vicreg,
)
from jepamba.jepa.heads import SequenceBatchNorm
from jepamba.model import LanguageModel

MODEL = Model(vocab_size=23, embed_dim=8, d_model=16, n_layer=3, d_state=4, headdim=4, mlp_mult=2.0, chunk_size=8)


def disturbed_heads(config: Jepa, width: int = 16) -> JepaHeads:
    heads = JepaHeads(config, width)
    with torch.no_grad():
        for value in heads.parameters():
            value += 0.3 * torch.randn_like(value)
    return heads


def slow_error(predictions: list[Tensor], z: Tensor, reset: Tensor | None) -> float:
    """Mean over k of the mean over pairs (t, t + k) of one document of the squared distance per component."""
    per_step = []
    for k, prediction in enumerate(predictions, start=1):
        total, count = 0.0, 0
        for b in range(z.shape[0]):
            for t in range(z.shape[1] - k):
                if reset is not None and reset[b, t + 1 : t + k + 1].any():
                    continue
                total += (prediction[b, t].double() - z[b, t + k].double()).square().mean().item()
                count += 1
        per_step.append(total / max(count, 1))
    return sum(per_step) / len(per_step)


def error_of(predictions: list[Tensor], z: Tensor, reset: Tensor | None, *, detach_targets: bool) -> Tensor:
    """The error of given predictions."""
    given = iter(predictions)
    config = Jepa(rollout_steps=len(predictions), detach_targets=detach_targets)
    return prediction_error(lambda *_: next(given), config, z, reset)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("resets", ["none", "never", "some", "always"])
def test_prediction_error_by_a_slow_loop(steps: int, resets: str) -> None:
    z = torch.randn(3, 14, 5)
    predictions = [torch.randn(3, 14, 5) for _ in range(steps)]
    share = {"none": 0.0, "never": 0.0, "some": 0.25, "always": 1.0}[resets]
    reset = None if resets == "none" else torch.rand(3, 14) < share
    ours = error_of(predictions, z, reset, detach_targets=False)
    assert ours.dtype == torch.float32
    assert ours.item() == pytest.approx(slow_error(predictions, z, reset), rel=1e-5)
    if resets == "always":
        assert ours.item() == 0


def test_a_window_too_short_for_the_last_step_is_no_accident() -> None:
    """`Run` refuses steps >= sequence; the longest roll-out that it accepts has a target."""
    z = torch.randn(2, 4, 5)
    predictions = [torch.zeros(2, 4, 5)] * 3
    assert torch.isfinite(error_of(predictions, z, None, detach_targets=False))


def test_detached_targets_stop_the_gradient_through_targets_alone() -> None:
    z, prediction = torch.randn(2, 9, 5, requires_grad=True), torch.randn(2, 9, 5, requires_grad=True)
    for detach in (False, True):
        error = error_of([prediction], z, None, detach_targets=detach)
        to_prediction, to_z = torch.autograd.grad(error, (prediction, z), allow_unused=True)
        assert to_prediction.abs().max() > 0
        assert (to_z is None) == detach
    # With a real roll-out z still learns through the prediction's side: its last position, a target only, does not.
    heads = disturbed_heads(Jepa(rollout_steps=2))
    z = torch.randn(2, 9, 16, requires_grad=True)
    grads = [
        torch.autograd.grad(prediction_error(heads.step, Jepa(rollout_steps=2, detach_targets=detach), z, None), z)[0]
        for detach in (False, True)
    ]
    assert grads[1][:, :8].abs().amin(0).max() > 0
    assert (grads[1][:, 8] == 0).all()
    assert grads[0][:, 8].abs().min() > 0


def whole_error(heads: JepaHeads, z: Tensor, tokens: Tensor | None, reset: Tensor | None) -> Tensor:
    """The prediction error by its definition, one pair of positions at a time, for linear projections."""
    weights, config = dict(heads.named_parameters()), heads.config
    matrix, n, per_step = weights["predictor.0.weight"], config.target_tokens, []
    for k in range(1, config.rollout_steps + 1):
        errors = [z.new_zeros(())]
        for b in range(z.shape[0]):
            for t in range(0, z.shape[1] - k * n, config.stride):
                if reset is not None and reset[b, t + 1 : t + k * n + 1].any():
                    continue
                guess = z[b, t]
                for step in range(1, k + 1):
                    hidden = matrix[:, :16] @ guess + weights["predictor.0.bias"]
                    if tokens is not None:
                        hidden = hidden + matrix[:, 16:] @ tokens[b, t + (step - 1) * n + 1 : t + step * n + 1].mean(0)
                    hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
                    guess = weights["pred_proj.weight"] @ (
                        weights["predictor.2.weight"] @ hidden + weights["predictor.2.bias"]
                    )
                target = z[b, t + (k - 1) * n + 1 : t + k * n + 1].mean(0)
                errors.append((guess - (target.detach() if config.detach_targets else target)).square().mean())
        per_step.append(torch.stack(errors).sum() / max(len(errors) - 1, 1))
    return torch.stack(per_step).mean()


FORMS: list[dict[str, Any]] = [
    {"rollout_steps": 2},
    {"rollout_steps": 1, "action": True},
    {"rollout_steps": 3, "action": True, "detach_targets": True},
    {"rollout_steps": 1, "target_tokens": 8},
    {"rollout_steps": 3, "target_tokens": 4, "action": True},
    {"rollout_steps": 2, "target_tokens": 2, "detach_targets": True},
    {"rollout_steps": 1, "stride": 4},
    {"rollout_steps": 3, "stride": 5, "action": True},
    {"rollout_steps": 2, "stride": 3, "target_tokens": 4, "action": True, "detach_targets": True},
]


@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_prediction_error_and_its_gradients_by_definition(form: dict[str, Any], resets: bool) -> None:
    heads = disturbed_heads(Jepa(**form)).double()
    z = torch.randn(2, 14, 16, dtype=torch.float64, requires_grad=True)
    tokens = torch.randn(2, 14, 16, dtype=torch.float64, requires_grad=True) if heads.config.action else None
    starts = torch.zeros(2, 14, dtype=torch.bool)
    starts[0, 3] = starts[1, 0] = starts[1, 11] = True
    reset = starts if resets else None
    inputs = [z, *([] if tokens is None else [tokens]), *heads.predictor.parameters(), *heads.pred_proj.parameters()]
    action = None if tokens is None else trailing_mean(tokens, heads.config.target_tokens)
    ours = prediction_error(heads.step, heads.config, z, reset, action_BTD=action)
    truth = whole_error(heads, z, tokens, reset)
    assert ours.item() == pytest.approx(truth.item(), rel=1e-6)
    for a, b in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(truth, inputs), strict=True):
        assert b.abs().max() > 0
        assert (a - b).norm() < 1e-6 * b.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_trailing_mean_is_one_of_fp32(dtype: torch.dtype) -> None:
    x = (torch.randn(2, 300, 4) + 20).to(dtype)
    found = trailing_mean(x, 8)
    assert found.dtype == dtype
    truth = x.double().unfold(1, 8, 1).mean(-1)
    assert torch.allclose(found[:, 7:].double(), truth, rtol=3e-5 if dtype == torch.float32 else 2**-8)
    assert trailing_mean(x, 1) is x


def test_prediction_error_is_fp32_for_bf16_latents() -> None:
    z = torch.randn(2, 9, 5).bfloat16()
    prediction = torch.randn(2, 9, 5).bfloat16()
    error = error_of([prediction], z, None, detach_targets=False)
    assert error.dtype == torch.float32
    assert error.item() == pytest.approx(slow_error([prediction], z, None), rel=1e-5)


def test_without_a_predictor_the_term_is_the_change_of_the_latent() -> None:
    config = Jepa(projector="none", predictor_mult=0, rollout_steps=1, sigreg_weight=0.0)
    z = torch.randn(2, 9, 16, requires_grad=True)
    reset = torch.zeros(2, 9, dtype=torch.bool)
    reset[0, 4] = True
    error = prediction_error(JepaHeads(config, 16).step, config, z, reset)
    pairs = [(b, t) for b in range(2) for t in range(8) if not reset[b, t + 1]]
    truth = torch.stack([(z[b, t + 1] - z[b, t]).square().mean() for b, t in pairs]).mean()
    assert error.item() == pytest.approx(truth.item(), rel=1e-5)
    found, expected = (torch.autograd.grad(value, z)[0] for value in (error, truth))
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 3])
def test_rollout_reads_its_own_output(steps: int) -> None:
    heads = disturbed_heads(Jepa(rollout_steps=steps, projector="linear"))
    z = torch.randn(2, 7, 16)
    predictions = heads.rollout(z)
    assert [p.shape for p in predictions] == [(2, 7, 16)] * steps
    first, second = heads.predictor[0], heads.predictor[2]
    assert isinstance(first, nn.Linear)
    assert isinstance(second, nn.Linear)
    assert first.weight.shape == (64, 16)
    current = z
    for prediction in predictions:
        hidden = nn.functional.gelu(current @ first.weight.T + first.bias)
        current = (hidden @ second.weight.T + second.bias) @ heads.pred_proj.weight.T
        assert torch.allclose(prediction, current, atol=1e-5)


def test_the_action_of_a_step_is_the_token_that_it_predicts() -> None:
    """By what the predictions at a position depend on: its latent, and the tokens up to that of the target."""
    heads = disturbed_heads(Jepa(rollout_steps=3, action=True))
    z, tokens = torch.randn(1, 9, 16, requires_grad=True), torch.randn(1, 9, 16, requires_grad=True)
    for k, prediction in enumerate(heads.rollout(z, tokens), 1):
        by_z, by_tokens = torch.autograd.grad(prediction[0, 4].sum(), (z, tokens), retain_graph=True)
        assert by_z[0].abs().amax(-1).nonzero().flatten().tolist() == [4]
        assert by_tokens[0].abs().amax(-1).nonzero().flatten().tolist() == list(range(5, 5 + k))


@pytest.mark.parametrize("target_tokens", [1, 3])
def test_the_loss_gives_the_predictor_the_embedded_tokens(target_tokens: int) -> None:
    config = Jepa(rollout_steps=2, action=True, target_tokens=target_tokens, sigreg_weight=0.0)
    terms, (model, heads, tokens, _, reset) = terms_of(config, lam=0.0)
    found, _ = model.activations(tokens, reset)
    embedded = model.token_embed.effective_weight()[tokens] @ model.embed_proj.weight.effective_weight().T
    x0 = embedded / (embedded.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    assert torch.allclose(found.x0_BTD, x0, atol=1e-6)
    z = heads.projector(found.h_BTD)
    assert terms.jepa.item() == pytest.approx(whole_error(heads, z, x0, reset).item(), rel=1e-5)


@pytest.mark.parametrize("kind", ["linear", "mlp-layernorm", "mlp-batchnorm", "batchnorm", "none"])
def test_a_fresh_predictor_says_the_same_everywhere(kind: str) -> None:
    heads = JepaHeads(Jepa(projector=kind, rollout_steps=2), 16).eval()
    output = heads.predictor[2]
    assert isinstance(output, nn.Linear)
    assert (output.weight == 0).all()
    assert (output.bias == 0).all()
    for prediction in heads.rollout(torch.randn(2, 7, 16)):
        assert torch.allclose(prediction, prediction[0, 0].expand_as(prediction), atol=1e-6)
        if kind in ("linear", "batchnorm", "none"):
            assert (prediction == 0).all()
    assert heads.project(torch.randn(2, 7, 16)).std() > 0.05


def test_projector_kinds() -> None:
    x = torch.randn(3, 5, 16)
    linear = JepaHeads(Jepa(projector="linear"), 16)
    assert isinstance(linear.projector, nn.Linear)
    assert linear.projector.bias is None
    assert torch.allclose(linear.project(x), x @ linear.projector.weight.T, atol=1e-6)
    none = disturbed_heads(Jepa(projector="none"))
    assert torch.equal(none.project(x), x)
    assert torch.equal(none.step(x), none.predictor(x))
    assert {name.partition(".")[0] for name, _ in none.named_parameters()} == {"predictor"}
    standard = disturbed_heads(Jepa(projector="batchnorm"))
    x_NM = x.flatten(0, 1)
    truth = (x_NM - x_NM.mean(0)) / (x_NM.var(0, unbiased=False) + 1e-5).sqrt()
    assert torch.allclose(standard.project(10 * x + 3).flatten(0, 1), truth, atol=1e-4)
    assert torch.equal(standard.step(x), standard.predictor(x))
    assert {name.partition(".")[0] for name, _ in standard.named_parameters()} == {"predictor"}
    copy = JepaHeads(Jepa(projector="none", predictor_mult=0), 16)
    assert not list(copy.parameters())
    assert torch.equal(copy.step(x), x)
    for kind, norm in (("mlp-layernorm", nn.LayerNorm), ("mlp-batchnorm", SequenceBatchNorm)):
        heads = disturbed_heads(Jepa(projector=kind))
        for part in (heads.projector, heads.pred_proj):
            assert isinstance(part, nn.Sequential)
            assert [type(layer) for layer in part] == [nn.Linear, norm, nn.GELU, nn.Linear]
            assert part[0].out_features == 32
        assert heads.project(x).shape == x.shape
    with torch.no_grad():
        w = dict(heads.projector.named_parameters())
        hidden = (x @ w["0.weight"].T + w["0.bias"]).flatten(0, 1)
        normed = (hidden - hidden.mean(0)) / (hidden.var(0, unbiased=False) + 1e-5).sqrt()
        truth = nn.functional.gelu(normed * w["1.weight"] + w["1.bias"]) @ w["3.weight"].T + w["3.bias"]
        assert torch.allclose(heads.project(x).flatten(0, 1), truth, atol=1e-4)


def test_batch_norm_counts_positions_and_is_fixed_in_evaluation() -> None:
    norm = SequenceBatchNorm(4)
    x = torch.randn(3, 50, 4) * 3 + 2
    y = norm(x)
    assert y.mean((0, 1)).abs().max() < 1e-5
    assert torch.allclose(y.var((0, 1), unbiased=False), torch.ones(4), atol=1e-3)
    norm.eval()
    assert torch.allclose(norm(x[:1])[0], norm(x)[0])


def batch() -> tuple[Tensor, Tensor, Tensor]:
    tokens = torch.randint(23, (3, 12))
    reset = torch.zeros(3, 12, dtype=torch.bool)
    reset[0, 5] = reset[2, 9] = True
    return tokens, (tokens + 1) % 23, reset


def terms_of(config: Jepa, lam: float, *, step: int = 4, heads: JepaHeads | None = None) -> tuple[LossTerms, Any]:
    model = LanguageModel(MODEL, Quant()).train()
    torch.manual_seed(1)
    if heads is None and config.active:
        heads = disturbed_heads(config)
    torch.manual_seed(2)
    tokens, targets, reset = batch()
    projections = sample_projections(config, MODEL.d_model, (3, 12), 7, step)
    whole = torch.tensor(1.0)
    weights = LossWeights(
        whole, torch.tensor(config.weight), torch.tensor(lam), torch.tensor(config.vicreg_weight), whole
    )
    terms = compute_losses(model, heads, config, tokens, targets, reset, weights, projections)
    return terms, (model, heads, tokens, targets, reset)


@pytest.mark.parametrize("pool", ["timestep", "positions", "centered"])
def test_the_terms_are_what_they_are_called_and_add_up(pool: str) -> None:
    config = Jepa(
        ce_weight=0.5,
        z_loss=1e-2,
        weight=0.3,
        sigreg_weight=0.2,
        vicreg_weight=0.4,
        sigreg_pool=pool,
        sigreg_projections=16,
        rollout_steps=2,
    )
    terms, (model, heads, tokens, targets, reset) = terms_of(config, lam=0.07)
    h = model(tokens, reset)[0]
    logits = model.logits(h)
    ce = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    z_loss = logits.logsumexp(-1).square().mean()
    z = heads.projector(h)
    mse = slow_error(heads.rollout(z), z, reset)
    statistic = sigreg(z, config, sample_projections(config, MODEL.d_model, (3, 12), 7, 4))
    assert terms.ce.item() == pytest.approx(ce.item(), rel=1e-5)
    assert terms.z_loss.item() == pytest.approx(z_loss.item(), rel=1e-5)
    assert terms.token.item() == pytest.approx((ce + 1e-2 * z_loss).item(), rel=1e-5)
    assert terms.jepa.item() == pytest.approx(mse, rel=1e-5)
    assert terms.sigreg.item() == pytest.approx(statistic.item(), rel=1e-5)
    assert terms.vicreg.item() == pytest.approx(vicreg(z).item(), rel=1e-5)
    total = 0.5 * (ce + 1e-2 * z_loss) + 0.3 * mse + 0.07 * statistic + 0.4 * terms.vicreg
    assert terms.total.item() == pytest.approx(total.item(), rel=1e-5)


def test_the_latent_terms_are_of_the_latents_of_the_layer() -> None:
    config = Jepa(layer=2, rollout_steps=2, sigreg_projections=16)
    terms, (model, heads, tokens, _, reset) = terms_of(config, lam=0.07)
    z = heads.projector(model(tokens, reset, layer=2)[0])
    assert terms.jepa.item() == pytest.approx(slow_error(heads.rollout(z), z, reset), rel=1e-5)
    statistic = sigreg(z, config, sample_projections(config, MODEL.d_model, (3, 12), 7, 4))
    assert terms.sigreg.item() == pytest.approx(statistic.item(), rel=1e-5)
    (terms.jepa + terms.sigreg).backward()
    for index, block in enumerate(model.blocks):
        grads = [p.grad for p in block.parameters()]
        assert all(g is not None for g in grads) if index < 2 else not any(g is not None and g.any() for g in grads)


def test_gradients_reach_the_kept_model_through_every_term() -> None:
    config = Jepa(sigreg_projections=16, rollout_steps=2, vicreg_weight=0.1)
    for term in ("token", "jepa", "sigreg", "vicreg"):
        terms, (model, heads, *_) = terms_of(config, lam=0.1)
        getattr(terms, term).backward()
        embedding = model.token_embed.master.grad
        assert embedding is not None
        assert embedding.abs().max() > 0
        assert (heads.projector.weight.grad is not None) == (term != "token")
        assert (heads.pred_proj.weight.grad is not None) == (term == "jepa")


def test_no_stop_gradient_by_default() -> None:
    assert not Jepa().detach_targets
    grads = []
    for detach in (False, True):
        torch.manual_seed(0)
        config = Jepa(detach_targets=detach, sigreg_weight=0.0)
        terms, (_, heads, *_) = terms_of(config, lam=0.0)
        terms.jepa.backward()
        grads.append(heads.projector.weight.grad)
    assert not torch.allclose(grads[0], grads[1])


def test_latent_terms_that_weigh_nothing_are_not_computed() -> None:
    base = Jepa(sigreg_projections=16)
    off = dataclasses.replace(base, weight=0.0, sigreg_weight=0.0)
    assert not off.active
    terms, _ = terms_of(off, lam=0.0)
    assert terms.jepa.item() == terms.sigreg.item() == 0
    assert torch.equal(terms.total, terms.token)
    only_sigreg, (_, heads, *_) = terms_of(dataclasses.replace(base, weight=0.0), lam=0.1)
    assert only_sigreg.jepa.item() == 0
    assert only_sigreg.sigreg.item() > 0
    only_sigreg.total.backward()
    assert heads.pred_proj.weight.grad is None
    only_jepa, _ = terms_of(dataclasses.replace(base, sigreg_weight=0.0), lam=0.0)
    assert only_jepa.jepa.item() > 0
    assert only_jepa.sigreg.item() == only_jepa.vicreg.item() == 0
    only_vicreg, _ = terms_of(dataclasses.replace(off, vicreg_weight=0.1), lam=0.0)
    assert only_vicreg.jepa.item() == only_vicreg.sigreg.item() == 0
    assert only_vicreg.vicreg.item() > 0


def weights_at(config: Jepa, *fractions: float) -> list[tuple[float, float] | None]:
    found = [latent_weights(config, fraction) for fraction in fractions]
    assert all(weights is None or weights.vicreg == 0 for weights in found)
    return [weights and weights[:2] for weights in found]


def test_lambda_ramps_over_its_share_of_training() -> None:
    assert weights_at(Jepa(weight=0.2, sigreg_weight=0.4), 0.0, 0.5, 1.0) == [(0.2, 0.4)] * 3
    ramp = Jepa(weight=0.2, sigreg_weight=0.4, sigreg_ramp=0.3)
    found = weights_at(ramp, 0.0, 0.15, 0.3, 0.31, 1.0)
    assert found == [(0.2, pytest.approx(value)) for value in (0.0, 0.2, 0.4, 0.4, 0.4)]
    assert weights_at(Jepa(sigreg_weight=0.4, sigreg_ramp=1.0), 0.25) == [(1.0, pytest.approx(0.1))]


def test_the_latent_terms_end_and_fall_where_they_should() -> None:
    config = Jepa(weight=0.2, sigreg_weight=0.4, until=0.5)
    assert weights_at(config, 0.0, 0.499, 0.5, 1.0) == [(0.2, 0.4), (0.2, 0.4), None, None]
    annealed = dataclasses.replace(config, anneal=True)
    whole = dataclasses.replace(annealed, until=1.0, sigreg_ramp=0.5)
    for found, truth in (
        (weights_at(annealed, 0.0, 0.25, 0.4, 0.5), [(0.2, 0.4), (0.1, 0.2), (0.04, 0.08), None]),
        (weights_at(whole, 0.0, 0.25, 0.5, 0.75, 1.0), [(0.2, 0.0), (0.15, 0.15), (0.1, 0.2), (0.05, 0.1), (0.0, 0.0)]),
    ):
        assert found == [expected and pytest.approx(expected) for expected in truth]
    assert weights_at(Jepa(weight=0.0, sigreg_weight=0.0), 0.0, 1.0) == [None, None]
    assert latent_weights(Jepa(weight=0.0, sigreg_weight=0.0, vicreg_weight=2.0, anneal=True), 0.25) == (0, 0, 1.5)


def test_step_decides_the_directions_of_the_objective() -> None:
    config = Jepa(sigreg_projections=16)
    values = []
    for step in (4, 4, 5):
        torch.manual_seed(0)
        values.append(terms_of(config, 0.1, step=step)[0].sigreg.item())
    assert values[0] == values[1] != values[2]
