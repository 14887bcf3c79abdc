"""Random inputs for the SSD operator, and its comparison with the float64 recurrence, for CPU and GPU tests."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from jepamba.ops.ssd import ssd_reference
from jepamba.ops.ssd.triton import ssd_triton
from ops.compare import relative

NAMES = ("x", "dt", "A", "B", "C", "D", "initial")


@dataclass(frozen=True)
class Case:
    """One shape with its options."""

    batch: int
    tokens: int
    heads: int
    width: int
    groups: int
    state: int
    chunk_size: int
    resets: float = 0.0
    initial: bool = False
    keep: bool = True


def inputs(
    case: Case, dtype: torch.dtype, device: str, seed: int = 0
) -> tuple[list[Tensor], Tensor | None, list[Tensor]]:
    """(x, dt, A, B, C, D and perhaps an initial state; resets or None; random gradients of y and the final state)."""
    g = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=g)

    b, t, h = case.batch, case.tokens, case.heads
    # x, B and C as slices of one tensor, as the mixer's convolution leaves them: not contiguous.
    inner, group = h * case.width, case.groups * case.state
    joint = normal(b, t, inner + 2 * group).to(dtype)
    x, B, C = joint.to(device).split([inner, group, group], dim=-1)
    values = [
        x.unflatten(-1, (h, case.width)),
        torch.nn.functional.softplus(normal(b, t, h) - 2).to(device),
        -torch.exp(normal(h)).to(device),
        B.unflatten(-1, (case.groups, case.state)),
        C.unflatten(-1, (case.groups, case.state)),
        normal(h).to(device),
    ]
    if case.initial:
        values.append(normal(b, h, case.width, case.state).to(device))
    reset = (torch.rand(b, t, generator=g) < case.resets).to(device) if case.resets else None
    weights = [normal(b, t, h, case.width).to(device, dtype), normal(b, h, case.width, case.state).to(device)]
    return [value.detach().requires_grad_() for value in values], reset, weights


def run(function, args: list[Tensor], reset: Tensor | None, weights: list[Tensor], **options) -> list[Tensor]:  # type: ignore[no-untyped-def]
    """y, the final state, and the gradients of all inputs."""
    initial = args[6] if len(args) > 6 else None
    y, final = function(*args[:6], initial, reset, **options)
    loss_terms = [y, final.to(weights[1].dtype)] if y.dtype != torch.float64 else [y, final]
    gradients = torch.autograd.grad(loss_terms, args, [w.to(o.dtype) for w, o in zip(weights, loss_terms, strict=True)])
    return [y, final, *gradients]


def errors(case: Case, dtype: torch.dtype, device: str, seed: int = 0) -> dict[str, float]:
    """Relative RMS error of every output and gradient of the Triton operator against the recurrence."""
    args, reset, weights = inputs(case, dtype, device, seed)
    ours = run(ssd_triton, args, reset, weights, chunk_size=case.chunk_size, keep_states=case.keep)
    truth = run(ssd_reference, args, reset, weights)
    # Where dA's many terms cancel, as with a single token, their own size is the measure.
    result = {name: relative(a, b) for name, a, b in zip(("y", "final", *NAMES), ours, truth, strict=False)}
    terms = (args[1].double() * truth[3]).norm()
    result["A"] = ((ours[4].double() - truth[4]).norm() / torch.maximum(truth[4].norm(), terms)).item()
    return result
