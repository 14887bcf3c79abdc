"""Random inputs for the kernels of the Epps–Pulley statistic and their comparison with the reference in float64."""

from __future__ import annotations

import torch

from jepamba.ops.epps_pulley import epps_pulley
from jepamba.ops.epps_pulley.reference import epps_pulley_reference
from ops.compare import relative


def epps_pulley_errors(
    samples: int, draws: int, directions: int, knots: int, first: float, device: str, *, seed: int = 0
) -> dict[str, float]:
    """Errors of the statistic and its gradient in fp32, the only dtype in use."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, draws, directions, generator=g) * 1.3 + 0.2
    t = torch.linspace(first, 4.0, knots)
    w = torch.rand(knots, generator=g)
    grad_out = torch.randn(samples, directions, generator=g)

    leaf = x.to(device).requires_grad_()
    value = epps_pulley(leaf, t.to(device), w.to(device))
    (grad,) = torch.autograd.grad(value, leaf, grad_out.to(device))
    # Knots are evenly spaced in fp32 up to rounding; the reference gets the same ones.
    even = t[0].double() + (t[1] - t[0]).double() * torch.arange(knots)
    wide = x.double().requires_grad_()
    truth = epps_pulley_reference(wide, even, w)
    (true_grad,) = torch.autograd.grad(truth, wide, grad_out.double())
    return {"value": relative(value, truth), "x": relative(grad, true_grad)}
