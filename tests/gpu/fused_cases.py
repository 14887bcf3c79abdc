"""Random inputs for the fused operators and their comparison with plain PyTorch in float64, for CPU and GPU tests.

Every function returns the relative RMS error of each output and gradient by its name.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from jepamba.ops.causal_conv import conv_silu
from jepamba.ops.causal_conv.reference import conv_silu_reference
from jepamba.ops.cross_entropy.pytorch import row_losses_torch, softcap
from jepamba.ops.cross_entropy.triton import row_losses_triton
from jepamba.ops.epps_pulley import epps_pulley
from jepamba.ops.epps_pulley.reference import epps_pulley_reference


def relative(ours: Tensor, truth: Tensor) -> float:
    """Return ‖ours − truth‖ / ‖truth‖, or ‖ours‖ if the truth is 0."""
    assert ours.shape == truth.shape
    size = truth.double().norm()
    return ((ours.double().cpu() - truth.double().cpu()).norm() / (size if size > 0 else 1.0)).item()


def cross_entropy_errors(
    rows: int, vocab: int, kind: str, cap: float, dtype: torch.dtype, device: str, *, learn: bool = True, seed: int = 0
) -> dict[str, float]:
    """Errors of all outputs of the cross-entropy kernels, for logits that exceed the cap."""
    g = torch.Generator().manual_seed(seed)
    raw = (torch.randn(rows, vocab, generator=g) * cap).to(dtype)
    bias = torch.randn(vocab, generator=g)
    targets = torch.randint(0, vocab, (rows,), generator=g)
    scale = 0.7 / rows if learn else None
    truth = row_losses_torch(raw.double(), bias.double(), targets, kind, cap, z_weight=1e-2, scale=scale)
    ours = row_losses_triton(raw.to(device), bias.to(device), targets.to(device), kind, cap, z_weight=1e-2, scale=scale)
    assert (ours.grad_nV is None) == (ours.grad_bias_V is None) == (not learn)
    names = ("ce", "lse", "raw", "bias")
    return {n: relative(a, b) for n, a, b in zip(names, ours, truth, strict=True) if a is not None and b is not None}


def autograd_truth(raw: Tensor, bias: Tensor, targets: Tensor, kind: str, cap: float) -> list[Tensor]:
    """The gradients of ce + 0.01·lse², summed and times 0.7, by autograd."""
    leaves = [raw.clone().requires_grad_(), bias.clone().requires_grad_()]
    logits = softcap(leaves[0] + leaves[1], kind, cap)
    loss = F.cross_entropy(logits, targets, reduction="sum") + 1e-2 * logits.logsumexp(1).square().sum()
    return list(torch.autograd.grad(0.7 * loss, leaves))


def conv_errors(
    batch: int,
    length: int,
    channels: int,
    taps: int,
    dtype: torch.dtype,
    device: str,
    *,
    resets: float = 0.0,
    history: bool = True,
    seed: int = 0,
) -> dict[str, float]:
    """Errors of output, new history and all gradients of the convolution, with strided x."""
    g = torch.Generator().manual_seed(seed)
    wide = torch.randn(batch, length, channels + 24, generator=g).to(dtype)
    values = {"x": wide, "kernel": torch.randn(channels, taps, generator=g), "bias": torch.randn(channels, generator=g)}
    if history:
        values["history"] = torch.randn(batch, channels, taps - 1, generator=g).to(dtype)
    reset = torch.rand(batch, length, generator=g) < resets if resets else None
    pull = torch.randn(batch, length, channels, generator=g).to(dtype)
    pull_after = torch.randn(batch, channels, taps - 1, generator=g).to(dtype)

    def run(fused: bool) -> list[Tensor]:
        place, width = (device, None) if fused else ("cpu", torch.float64)
        leaves = {n: v.to(place, width or v.dtype).requires_grad_() for n, v in values.items()}
        x, flags = leaves["x"][..., 8 : 8 + channels], None if reset is None else reset.to(place)
        rest = (leaves["kernel"], leaves["bias"], flags)
        y, after = (conv_silu if fused else conv_silu_reference)(x, leaves.get("history"), *rest)
        assert not fused or "ConvSilu" in type(y.grad_fn).__name__
        pulls = [pull.to(place, y.dtype), pull_after.to(place, y.dtype)]
        return [y, after, *torch.autograd.grad([y, after], list(leaves.values()), pulls)]

    names = ("y", "after", *values)
    return {n: relative(a, b) for n, a, b in zip(names, run(True), run(False), strict=True)}


def epps_pulley_errors(
    samples: int, draws: int, directions: int, knots: int, first: float, device: str, *, seed: int = 0
) -> dict[str, float]:
    """Errors of the statistic and its gradient in fp32, the only dtype in use."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, draws, directions, generator=g) * 1.3 + 0.2
    t = torch.linspace(first, 4.0, knots)
    w = torch.rand(knots, generator=g)
    pull = torch.randn(samples, directions, generator=g)

    leaf = x.to(device).requires_grad_()
    value = epps_pulley(leaf, t.to(device), w.to(device))
    (grad,) = torch.autograd.grad(value, leaf, pull.to(device))
    # Knots are evenly spaced in fp32 up to rounding; the reference gets the same ones.
    even = t[0].double() + (t[1] - t[0]).double() * torch.arange(knots)
    wide = x.double().requires_grad_()
    truth = epps_pulley_reference(wide, even, w)
    (true_grad,) = torch.autograd.grad(truth, wide, pull.double())
    return {"value": relative(value, truth), "x": relative(grad, true_grad)}
