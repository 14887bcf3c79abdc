"""Muon against PyTorch's and against singular values; who updates what; the schedule; state that survives."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from jepamba.config import Jepa, Model, Optim, Quant
from jepamba.jepa import JepaHeads
from jepamba.model import LanguageModel
from jepamba.optim import Muon, Optimizers, group_parameters, learning_rate_scale, muon_momentum
from jepamba.optim.muon import assign_to_ranks

CPU = torch.device("cpu")
SHAPES = [(8, 24), (24, 8), (16, 16), (8, 24), (1, 5), (24, 8)]  # wide, tall, square; some shapes twice


def ours(params: list[Tensor], **changes: Any) -> Muon:
    settings: dict[str, Any] = {
        "lr": 0.02,
        "momentum": 0.95,
        "steps": 3,
        "row_norm": False,
        "weight_decay": 0.04,
        "compute_dtype": torch.float32,
    }
    return Muon(params, **{**settings, **changes})


def theirs(params: list[Tensor], steps: int = 3) -> torch.optim.Muon:
    return torch.optim.Muon(
        [nn.Parameter(p) if not isinstance(p, nn.Parameter) else p for p in params],
        lr=0.02,
        momentum=0.95,
        weight_decay=0.04,
        ns_steps=steps,
        ns_coefficients=(3.4445, -4.7750, 2.0315),
    )


def matrices(seed: int = 0) -> list[nn.Parameter]:
    g = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=g)) for shape in SHAPES]


def run(optimizer: Muon | torch.optim.Optimizer, params: list[nn.Parameter], steps: int = 6) -> list[Tensor]:
    g = torch.Generator().manual_seed(5)
    for _ in range(steps):
        for p in params:
            p.grad = torch.randn(p.shape, generator=g)
        optimizer.step()
    return [p.detach().clone() for p in params]


@pytest.mark.parametrize("steps", [3, 5])
def test_muon_is_torch_muon(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's runs its iteration in bf16; with that cast taken away the two agree to fp32 rounding."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda self: self.clone())
    a, b = matrices(), matrices()
    start = [p.detach().clone() for p in a]
    for mine, truth, first in zip(run(ours(a, steps=steps), a), run(theirs(b, steps), b), start, strict=True):
        assert (mine - truth).norm() < 2e-5 * (truth - first).norm()


def test_muon_in_bf16_is_torch_muon_to_bf16_rounding() -> None:
    a, b = matrices(), matrices()
    start = [p.detach().clone() for p in a]
    for mine, truth, first in zip(run(ours(a, compute_dtype=torch.bfloat16), a), run(theirs(b), b), start, strict=True):
        assert (mine - truth).norm() < 0.02 * (truth - first).norm()


@pytest.mark.parametrize("row_norm", [False, True])
def test_muon_by_its_definition(row_norm: bool) -> None:
    """Nesterov momentum, row RMS, the quintic on singular values, the scale, decoupled decay: all in float64."""
    params = matrices()
    expected = [p.detach().double() for p in params]
    buffers = [torch.zeros_like(value) for value in expected]
    optimizer = ours(params, row_norm=row_norm)
    g = torch.Generator().manual_seed(5)
    for step in range(4):
        momentum = 0.85 + 0.03 * step
        lr = 0.02 / (step + 1)
        for group in optimizer.param_groups:
            group["momentum"], group["lr"] = momentum, lr
        for i, p in enumerate(params):
            grad = torch.randn(p.shape, generator=g)
            p.grad = grad.clone()
            buffers[i] = momentum * buffers[i] + (1 - momentum) * grad.double()
            update = momentum * buffers[i] + (1 - momentum) * grad.double()
            if row_norm:
                update = update / update.square().mean(1, keepdim=True).sqrt()
            U, S, Vh = torch.linalg.svd(update, full_matrices=False)
            S = S / S.square().sum().sqrt()
            for _ in range(3):
                S = 3.4445 * S - 4.7750 * S**3 + 2.0315 * S**5
            rows, columns = p.shape
            scale = lr * math.sqrt(max(1.0, rows / columns))
            expected[i] = expected[i] * (1 - lr * 0.04) - scale * (U * S) @ Vh
        optimizer.step()
        for p, truth in zip(params, expected, strict=True):
            assert torch.allclose(p.double(), truth, atol=1e-5)


def test_equal_shapes_together_equal_one_by_one() -> None:
    together, apart = matrices(), matrices()
    for p, q in zip(
        run(ours(together, row_norm=True), together),
        run_each([ours([p], row_norm=True) for p in apart], apart),
        strict=True,
    ):
        assert torch.allclose(p, q, atol=1e-6)


def run_each(optimizers: list[Muon], params: list[nn.Parameter]) -> list[Tensor]:
    g = torch.Generator().manual_seed(5)
    for _ in range(6):
        for p in params:
            p.grad = torch.randn(p.shape, generator=g)
        for optimizer in optimizers:
            optimizer.step()
    return [p.detach().clone() for p in params]


def test_matrices_are_dealt_by_what_they_cost() -> None:
    shapes = ((640, 2560),) * 10 + ((640, 640),) * 20 + ((8192, 64), (3, 5))
    for ranks in (1, 2, 3, 8, 40):
        shares = assign_to_ranks(shapes, ranks)
        assert len(shares) == ranks
        assert sorted(i for share in shares for i in share) == list(range(len(shapes)))
        costs = [min(shape) ** 2 * (2 * max(shape) + min(shape)) for shape in shapes]
        loads = [sum(costs[i] for i in share) for share in shares]
        # Never worse than the mean and one matrix more.
        assert max(loads) <= sum(loads) / ranks + max(costs)
    assert max(sum(shapes[i][0] * shapes[i][1] for i in share) for share in assign_to_ranks(shapes[:30], 2)) < 12.4e6


def test_scheduled_values_may_be_tensors() -> None:
    """As a captured graph needs them: set in place, they do what numbers do."""
    numbers, tensors = matrices(), matrices()
    by_number = ours(numbers, row_norm=True)
    by_tensor = ours(tensors, row_norm=True, lr=torch.tensor(0.02), momentum=torch.tensor(0.95))
    g = torch.Generator().manual_seed(5)
    for step in range(4):
        lr, momentum = 0.02 / (step + 1), 0.8 + 0.04 * step
        by_number.param_groups[0].update(lr=lr, momentum=momentum)
        by_tensor.param_groups[0]["lr"].fill_(lr)
        by_tensor.param_groups[0]["momentum"].fill_(momentum)
        for p, q in zip(numbers, tensors, strict=True):
            p.grad = torch.randn(p.shape, generator=g)
            q.grad = p.grad.clone()
        by_number.step()
        by_tensor.step()
    for p, q in zip(numbers, tensors, strict=True):
        assert torch.allclose(p, q, atol=1e-6)


def test_row_normalisation_makes_rows_equal_in_size() -> None:
    p = nn.Parameter(torch.zeros(6, 30))
    p.grad = torch.randn(6, 30) * torch.logspace(-6, 3, 6).unsqueeze(1)
    ours([p], row_norm=True, weight_decay=0.0, steps=5, lr=1.0).step()
    q = nn.Parameter(torch.zeros(6, 30))
    q.grad = p.grad.clone()
    ours([q], row_norm=False, weight_decay=0.0, steps=5, lr=1.0).step()
    assert p.norm(dim=1).min() > 0.6
    assert q.norm(dim=1).min() < 0.05


def test_weight_decay_is_decoupled_and_a_missing_gradient_leaves_all_alone() -> None:
    p, idle = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(4, 6))
    before, before_idle = p.detach().clone(), idle.detach().clone()
    p.grad = torch.zeros(4, 6)
    optimizer = ours([p, idle], lr=0.5, weight_decay=0.1)
    optimizer.step()
    assert torch.allclose(p, before * 0.95)
    assert torch.equal(idle, before_idle)
    assert idle not in optimizer.state


def test_muon_takes_matrices_alone() -> None:
    with pytest.raises(ValueError, match=r"shape \(5,\)"):
        ours([nn.Parameter(torch.zeros(5))])


# Groups.


def network(config: Optim | None = None, tie: int = 2) -> tuple[nn.ModuleDict, Optim]:
    model = Model(
        vocab_size=23,
        embed_dim=8,
        d_model=16,
        n_layer=4,
        d_state=4,
        headdim=4,
        mlp_mult=2.0,
        chunk_size=8,
        tie=tie,
        mlp="swiglu",
    )
    heads = JepaHeads(Jepa(projector="mlp-batchnorm"), 16)
    return nn.ModuleDict({"model": LanguageModel(model, Quant()), "heads": heads}), config or Optim()


def step_once(modules: nn.ModuleDict, optimizers: Optimizers, seed: int = 3) -> None:
    g = torch.Generator().manual_seed(seed)
    for p in modules.parameters():
        p.grad = torch.randn(p.shape, generator=g).to(p.dtype)
    optimizers.step()


@pytest.mark.parametrize("tie", [0, 1, 2, 3])
@pytest.mark.parametrize("train_conv", [True, False])
@pytest.mark.parametrize("decay_ssm", [True, False])
def test_every_parameter_is_in_exactly_one_group(tie: int, train_conv: bool, decay_ssm: bool) -> None:
    modules, config = network(Optim(train_conv=train_conv, decay_ssm=decay_ssm), tie)
    named = dict(modules.named_parameters())
    groups = group_parameters(named.items(), config)
    all_groups = [groups.muon, groups.adam, groups.adam_no_decay, groups.untrained]
    names = [name for group in all_groups for name in group]
    assert sorted(names) == sorted(named)
    assert all(group[name] is named[name] for group in all_groups for name in group)


def test_groups_are_those_of_the_spec() -> None:
    modules, config = network()
    groups = group_parameters(modules.named_parameters(), config)
    assert groups.untrained == {}
    for name, p in modules.named_parameters():
        leaf = name.removesuffix(".master").rsplit(".", 1)[-1]
        if leaf in ("A_log", "dt_bias", "D"):
            assert name in groups.adam_no_decay, name
        elif p.ndim == 2 and leaf not in ("token_embed", "conv_weight", "mix", "skip_weight"):
            assert name in groups.muon, name
        else:
            assert name in groups.adam, name
    for name in (
        "model.blocks.0.mixer.in_proj.weight.master",
        "model.blocks.0.mlp.gate.weight.master",
        "model.embed_proj.weight.master",
        "model.head.embed_proj_rev.weight.master",
        "heads.projector.0.weight",
        "heads.predictor.0.weight",
        "heads.pred_proj.3.weight",
    ):
        assert name in groups.muon
    for name in (
        "model.token_embed.master",
        "model.head.vocab_bias.master",
        "model.skips.skip_weight.master",
        "model.blocks.1.mix.master",
        "model.blocks.1.mixer.conv_weight.master",
        "model.blocks.1.mixer.conv_bias.master",
        "model.blocks.1.mixer.norm_weight.master",
        "heads.predictor.0.bias",
        "heads.projector.1.weight",
    ):
        assert name in groups.adam


def test_build_uses_the_settings() -> None:
    modules, config = network(
        Optim(muon_lr=0.3, muon_momentum_start=0.7, newton_schulz_steps=4, muon_row_norm=False, muon_weight_decay=0.2)
    )
    optimizers = Optimizers.build(modules.named_parameters(), config, CPU)
    (group,) = optimizers.muon.param_groups
    assert (group["lr"], group["momentum"], group["steps"]) == (0.3, 0.7, 4)
    assert (group["row_norm"], group["weight_decay"]) == (False, 0.2)
    decayed, plain = optimizers.adam.param_groups
    assert (decayed["lr"], decayed["betas"], decayed["eps"]) == (0.01, (0.9, 0.95), 1e-8)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.05, 0.0)
    defaults = Optimizers.build(modules.named_parameters(), Optim(), CPU).muon.param_groups[0]
    assert (defaults["lr"], defaults["momentum"], defaults["steps"]) == (0.02, 0.85, 3)
    assert (defaults["row_norm"], defaults["weight_decay"]) == (True, 0.04)


@pytest.mark.parametrize("decay_ssm", [False, True])
def test_time_scales_do_not_decay_unless_asked(decay_ssm: bool) -> None:
    """Defect 3: A_log, dt_bias and D were decayed. With a zero gradient, decay is all that moves a parameter."""
    modules, config = network(Optim(decay_ssm=decay_ssm))
    optimizers = Optimizers.build(modules.named_parameters(), config, CPU)
    before = {name: p.detach().clone() for name, p in modules.named_parameters()}
    for p in modules.parameters():
        p.grad = torch.zeros_like(p)
    optimizers.step()
    for name, p in modules.named_parameters():
        leaf = name.removesuffix(".master").rsplit(".", 1)[-1]
        if leaf in ("A_log", "dt_bias", "D") and not decay_ssm:
            assert torch.equal(p, before[name]), name
        elif name in optimizers.groups.muon:
            assert torch.allclose(p, before[name] * (1 - 0.02 * 0.04), rtol=1e-6), name
        else:
            assert torch.allclose(p, before[name] * (1 - 0.01 * 0.05), rtol=1e-6), name


def test_the_convolution_is_trained() -> None:
    """Defect 1: it was in no optimizer."""
    modules, config = network()
    optimizers = Optimizers.build(modules.named_parameters(), config, CPU)
    before = {name: p.detach().clone() for name, p in modules.named_parameters()}
    step_once(modules, optimizers)
    for name, p in modules.named_parameters():
        assert not torch.equal(p, before[name]), name
        assert p.grad is None or not p.grad.any(), name


def test_an_untrained_convolution_stays_and_has_no_gradient() -> None:
    modules, config = network(Optim(train_conv=False))
    optimizers = Optimizers.build(modules.named_parameters(), config, CPU)
    conv = {name: p for name, p in modules.named_parameters() if "conv" in name}
    assert conv.keys() == optimizers.groups.untrained.keys()
    assert len(conv) == 8
    assert not conv.keys() & optimizers.trained().keys()
    before = {name: p.detach().clone() for name, p in conv.items()}
    torch.stack([p.sum() for p in modules.parameters()]).sum().backward()
    optimizers.step()
    for name, p in modules.named_parameters():
        if name in conv:
            assert p.grad is None
            assert torch.equal(p, before[name])
        else:
            # Cleared in place: a captured graph goes on adding to the same tensors.
            assert p.grad is not None
            assert not p.grad.any(), name


def test_adam_is_adam() -> None:
    modules, config = network()
    optimizers = Optimizers.build(modules.named_parameters(), config, CPU)
    name = "model.blocks.0.mixer.norm_weight.master"
    p = dict(modules.named_parameters())[name]
    value, m, v = p.detach().double(), torch.zeros(16).double(), torch.zeros(16).double()
    g = torch.Generator().manual_seed(1)
    for t in range(1, 5):
        for q in modules.parameters():
            q.grad = torch.randn(q.shape, generator=g)
        assert p.grad is not None
        grad = p.grad.double()
        optimizers.schedule(1 / t, 0.9)
        optimizers.step()
        lr = 0.01 / t
        m, v = 0.9 * m + 0.1 * grad, 0.95 * v + 0.05 * grad**2
        value = value * (1 - lr * 0.05) - lr * (m / (1 - 0.9**t)) / ((v / (1 - 0.95**t)).sqrt() + 1e-8)
        assert torch.allclose(p.double(), value, atol=1e-6)


def test_bf16_masters_lose_the_weight_decay() -> None:
    """Defect 2: 1 − 0.02·0.04 is nearer to 1 than half of a BF16 step, so every product rounds back."""
    config = Optim()
    weights = {}
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        modules, _ = network()
        modules.to(dtype)
        optimizers = Optimizers.build(modules.named_parameters(), config, CPU)
        name = "model.blocks.0.mixer.in_proj.weight.master"
        p = dict(modules.named_parameters())[name]
        before = p.detach().clone()
        for _ in range(50):
            for q in modules.parameters():
                q.grad = torch.zeros_like(q)
            optimizers.step()
        weights[dtype] = (before, p.detach())
    before, after = weights[torch.bfloat16]
    assert torch.equal(before, after)
    before, after = weights[torch.float32]
    assert torch.allclose(after, before * (1 - 0.02 * 0.04) ** 50, rtol=1e-4)


def test_bf16_masters_lose_small_updates() -> None:
    """Defect 2: a dt_bias of −4 in BF16 moves in steps of 2⁻⁵, far above a late learning rate."""
    moved = {}
    for dtype in (torch.float32, torch.bfloat16):
        p = nn.Parameter(torch.full((4,), -4.0, dtype=dtype))
        matrix = nn.Parameter(torch.zeros(2, 2))
        optimizers = Optimizers.build([("dt_bias", p), ("in_proj.weight.master", matrix)], Optim(), CPU)
        optimizers.schedule(0.1, 0.95)
        for _ in range(100):
            p.grad = torch.ones_like(p)
            optimizers.step()
        moved[dtype] = (p.detach().float() + 4).abs().max().item()
    assert moved[torch.bfloat16] == 0
    assert moved[torch.float32] == pytest.approx(0.1, rel=0.01)


# Schedule.


def test_learning_rate_is_constant_and_then_falls_to_zero() -> None:
    config = Optim(warmdown=0.15)
    assert [learning_rate_scale(config, p) for p in (0.0, 0.5, 0.85)] == pytest.approx([1.0] * 3)
    assert [learning_rate_scale(config, p) for p in (0.925, 0.97, 1.0, 1.2)] == pytest.approx([0.5, 0.2, 0.0, 0.0])
    assert [learning_rate_scale(Optim(warmdown=0.0), p) for p in (0.0, 1.0)] == [1.0, 1.0]
    assert [learning_rate_scale(Optim(warmdown=1.0), p) for p in (0.0, 0.25, 1.0)] == pytest.approx([1.0, 0.75, 0.0])


def test_momentum_warms_up_linearly() -> None:
    config = Optim()
    assert [muon_momentum(config, s) for s in (0, 250, 499, 500, 9999)] == pytest.approx(
        [0.85, 0.90, 0.95 - 0.1 / 500, 0.95, 0.95]
    )
    assert muon_momentum(Optim(muon_momentum_steps=0), 0) == 0.95


def test_schedule_sets_every_group() -> None:
    modules, config = network()
    optimizers = Optimizers.build(modules.named_parameters(), config, CPU)
    optimizers.schedule(0.25, 0.9)
    assert [group["lr"] for group in optimizers.muon.param_groups] == [0.005]
    assert [group["momentum"] for group in optimizers.muon.param_groups] == [0.9]
    assert [group["lr"] for group in optimizers.adam.param_groups] == [0.0025, 0.0025]
    before = {name: p.detach().clone() for name, p in modules.named_parameters()}
    optimizers.schedule(0.0, 0.9)
    step_once(modules, optimizers)
    assert all(torch.equal(p, before[name]) for name, p in modules.named_parameters())


# State.


def test_state_round_trip_continues_to_the_bit() -> None:
    modules, config = network()
    optimizers = Optimizers.build(modules.named_parameters(), config, CPU)
    for seed in range(3):
        step_once(modules, optimizers, seed)
    state = {name: value.clone() for name, value in optimizers.state().items()}
    kinds = {name.split("/")[0] for name in state}
    assert kinds == {"momentum", "exp_avg", "exp_avg_sq", "step"}
    named = dict(modules.named_parameters())
    assert {name.split("/", 1)[1] for name in state} == set(named)
    weights = {name: value.clone() for name, value in modules.state_dict().items()}

    torch.manual_seed(77)
    fresh, _ = network()
    fresh.load_state_dict(weights)
    restored = Optimizers.build(fresh.named_parameters(), config, CPU)
    step_once(fresh, restored, 50)  # state of its own, to be replaced
    fresh.load_state_dict(weights)
    restored.restore(state)
    for seed in range(3, 6):
        step_once(modules, optimizers, seed)
        step_once(fresh, restored, seed)
    for (name, p), q in zip(modules.named_parameters(), fresh.parameters(), strict=True):
        assert torch.equal(p, q), name
    left, right = optimizers.state(), restored.state()
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_restored_state_is_a_copy() -> None:
    modules, config = network()
    optimizers = Optimizers.build(modules.named_parameters(), config, CPU)
    step_once(modules, optimizers)
    state = {name: value.clone() for name, value in optimizers.state().items()}
    frozen = {name: value.clone() for name, value in state.items()}
    optimizers.restore(state)
    step_once(modules, optimizers)
    assert all(torch.equal(state[name], frozen[name]) for name in state)


def test_restoring_the_state_before_the_first_step_forgets_the_rest() -> None:
    modules, config = network()
    optimizers = Optimizers.build(modules.named_parameters(), config, CPU)
    fresh = optimizers.state()
    assert fresh == {}
    step_once(modules, optimizers)
    there = optimizers.state()
    assert any(value.any() for value in there.values())
    optimizers.restore(fresh)
    after = optimizers.state()
    # The very tensors that were there, as a captured graph needs them, and nothing in them.
    assert all(after[name].data_ptr() == value.data_ptr() for name, value in there.items())
    assert not any(value.any() for value in after.values())
    step_once(modules, optimizers)
    assert all(value.item() == 1 for name, value in optimizers.state().items() if name.startswith("step/"))


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("momentum/model.blocks.9.mixer.in_proj.weight.master", (44, 16)),
        ("momentum/", (1,)),
        ("nonsense", (1,)),
        ("momentum/model.blocks.0.mixer.in_proj.weight.master", (16, 44)),
        ("exp_avg/model.token_embed.master", (23, 9)),
    ],
)
def test_foreign_state_is_refused_by_name(path: str, shape: tuple[int, ...]) -> None:
    modules, config = network()
    optimizers = Optimizers.build(modules.named_parameters(), config, CPU)
    with pytest.raises(ValueError, match=path):
        optimizers.restore({path: torch.zeros(shape)})


def test_adam_steps_return_to_zero_and_moments_stay() -> None:
    modules, config = network()
    optimizers = Optimizers.build(modules.named_parameters(), config, CPU)
    step_once(modules, optimizers)
    before = {name: value.clone() for name, value in optimizers.state().items()}
    optimizers.reset_adam_steps()
    for name, value in optimizers.state().items():
        if name.startswith("step/"):
            assert value.item() == 0
        else:
            assert torch.equal(value, before[name])


def test_adamw_is_torch_adamw() -> None:
    """To the bit, with a parameter that has a gradient in some steps only, and without importing a compiler."""
    code = """
import sys
import torch
from jepamba.optim.base import AdamW

def run(make):
    g = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape, generator=g)) for shape in ((3, 5), (7,), (4,))]
    groups = [{"params": params[:2], "weight_decay": 0.1}, {"params": params[2:], "weight_decay": 0.0}]
    optimizer = make(groups, lr=0.1, betas=(0.8, 0.95), eps=1e-8)
    for step in range(5):
        for i, p in enumerate(params):
            p.grad = torch.randn(p.shape, generator=g) if i != 1 or step in (1, 3) else None
        optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)
        optimizer.step()
    return params, [dict(optimizer.state[p]) for p in params]

ours = run(lambda groups, **settings: AdamW(groups, **settings, capturable=False))
assert "torch._dynamo" not in sys.modules
theirs = run(lambda groups, **settings: torch.optim.AdamW(groups, **settings, fused=True))
assert all(map(torch.equal, ours[0], theirs[0]))
for a, b in zip(ours[1], theirs[1], strict=True):
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
