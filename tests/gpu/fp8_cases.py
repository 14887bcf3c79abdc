"""Compares FP8 products with the same function of the same bf16 activations in float64."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from jepamba.config import Model, Quant
from jepamba.model.layers import Linear, Mlp
from jepamba.ops.fp8.linear import Rounded, round_rows_plain
from jepamba.ops.fp8.mlp import hidden_gradient_triton, hidden_rounded_triton
from jepamba.ops.norms import RMS_EPS

ROUNDED = 3.5e-2
"""Relative RMS error of a product with one factor rounded to e4m3. From 1 to 2 its values lie 2⁻³ apart: the error is
2⁻³/√12 = 0.036, of values whose root mean square is 1.35 to 1.5, so 2.4 to 2.7 %. A sum of products has it as it is. On
top of it, bf16 and the accumulators' own rounding."""
BOTH = 5e-2
"""With both factors rounded, √2 times that."""
MLP = 6e-2
"""Error of an MLP, whose second product also has the error of the first, doubled by the square."""
BF16 = 5e-3
"""A product of bf16 numbers, rounded to bf16."""


def settled_linear(inputs: int, outputs: int, quant: Quant, device: str, *, quantized: bool = True) -> Linear:
    """A layer in training mode with random cached weights in FP8."""
    linear = Linear(inputs, outputs, quant)
    with torch.no_grad():
        # Rows of different size, and one of zeros.
        linear.w.mul_(torch.logspace(-1, 1, outputs).unsqueeze(1))
        cast(Tensor, linear.w)[outputs // 2] = 0
    linear.to(device).train()
    linear.quantized, linear.fp8 = quantized, True
    linear.settle(torch.bfloat16)
    linear.use_settled()
    return linear


def relative(value: Tensor, truth: Tensor) -> float:
    return float((value.double() - truth).norm() / truth.norm())


def linear_errors(
    tokens: int, inputs: int, outputs: int, quant: Quant, device: str, *, scaled: bool, quantized: bool = True
) -> dict[str, float]:
    """Relative RMS errors of a layer's output and of every gradient."""
    linear = settled_linear(inputs, outputs, quant, device, quantized=quantized)
    exact_OK = linear.weight("w").double() if not quantized else _on_grid(linear)
    rows = -(-outputs // 16) * 16
    generator = torch.Generator().manual_seed(3)
    x_NK, dy_NO = (torch.randn(2, tokens // 2, n, generator=generator).to(device) for n in (inputs, rows))
    # Tokens of very different size: a scale for each is what keeps their errors apart.
    x_NK *= torch.logspace(-6, 6, tokens, device=device).view(2, -1, 1)
    x_NK = x_NK.bfloat16().requires_grad_()
    dy_NO = (dy_NO / x_NK.detach().abs().amax(-1, keepdim=True)).bfloat16()
    scale_O = (torch.rand(outputs, generator=generator) + 0.5).to(device).requires_grad_() if scaled else None
    y_NO = linear(x_NK, scale_O, rows=rows)
    y_NO.backward(dy_NO.to(y_NO.dtype))

    truth = [value.detach().double().requires_grad_() for value in (x_NK, exact_OK)]
    scale64_O = torch.ones(outputs, device=device, dtype=torch.double) if scale_O is None else scale_O.detach().double()
    truth.append(scale64_O.requires_grad_())
    y64_NO = torch.nn.functional.pad((truth[0] @ truth[1].t()) * truth[2], (0, rows - outputs))
    y64_NO.backward(dy_NO.double())
    grads = [cast(Tensor, value.grad) for value in truth]
    leaf_grad = cast(Tensor, linear.leaves["w"].grad)
    # By token and by row: what is large must not hide what is small, nor what nearly cancels count for more.
    x_N1, w_O = truth[0].detach().norm(dim=-1, keepdim=True), truth[1].detach().norm(dim=1)
    unit_NO = x_N1 * torch.nn.functional.pad(w_O + (w_O == 0), (0, rows - outputs), value=1.0)
    unit_N1 = dy_NO.double().norm(dim=-1, keepdim=True)
    unit_O1 = grads[1].norm(dim=1, keepdim=True)
    found = {
        "y": relative(y_NO.detach() / unit_NO, y64_NO.detach() / unit_NO),
        "dx": relative(cast(Tensor, x_NK.grad) / unit_N1, grads[0] / unit_N1),
        "dw": relative(leaf_grad / unit_O1, grads[1] / unit_O1),
    }
    if scale_O is not None:
        found["dscale"] = relative(cast(Tensor, scale_O.grad), grads[2])
    return found


def hidden_errors(rows: int, width: int, dtype: torch.dtype, device: str) -> dict[str, float]:
    """The kernels between an MLP's products against the same in separate steps, in float64 up to the rounding."""
    generator = torch.Generator().manual_seed(rows)
    u, dh = (torch.randn(rows, width, generator=generator).to(device, dtype) for _ in range(2))
    u *= torch.logspace(-3, 3, rows, device=device).to(dtype).unsqueeze(1)
    u[rows // 2] = -1.0
    factor = torch.logspace(-1, 1, width, device=device)
    leaf = u.double().requires_grad_()
    h64 = torch.nn.functional.rms_norm(leaf.relu().square(), (width,), eps=RMS_EPS)
    h64.backward(dh.double())
    du64 = cast(Tensor, leaf.grad)
    ours, forward = hidden_gradient_triton(u, dh, factor), hidden_rounded_triton(u)
    assert ours.h_NM.dtype == ours.du_NM.dtype == dtype
    # By row: their gradients are of very different size.
    unit = du64.norm(dim=1, keepdim=True)
    unit += unit == 0
    again, apart = round_rows_plain(ours.h_NM, None), round_rows_plain(ours.du_NM, factor)
    return {
        "h": relative(ours.h_NM, h64.detach()),
        "du": relative(ours.du_NM / unit, du64 / unit),
        "h in fp8": relative(unrounded(forward), unrounded(again)),
        "du in fp8": relative(unrounded(ours.rounded) / unit, unrounded(apart) / unit),
    }


def unrounded(value: Rounded) -> Tensor:
    return value.codes_NK.double() * value.scale_N1


def mlp_errors(tokens: int, width: int, hidden: int, device: str) -> dict[str, float]:
    """Relative RMS errors of an MLP on INT4, its scale on the weights, in output and every gradient."""
    mlp = Mlp(Model(d_model=width, headdim=16, mlp_mult=hidden / width), Quant(large=64))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        mlp.down.w.copy_(torch.randn(width, hidden, generator=generator) * hidden**-0.5)
    mlp.to(device).train()
    for linear in (mlp.up, mlp.down):
        linear.quantized = linear.fp8 = True
        linear.settle(torch.bfloat16)
        linear.use_settled()
    x, dy = (torch.randn(2, tokens // 2, width, generator=generator).to(device).bfloat16() for _ in range(2))
    scale = (torch.rand(width, generator=generator) + 0.5).to(device)
    inputs = [x.requires_grad_(), scale.requires_grad_()]
    y = mlp(*inputs)
    y.backward(dy)
    truth = [value.detach().double().requires_grad_() for value in (*inputs, _on_grid(mlp.up), _on_grid(mlp.down))]
    x64, scale64, up64, down64 = truth
    h64 = torch.nn.functional.rms_norm((x64 @ up64.t()).relu().square(), (hidden,), eps=RMS_EPS)
    y64 = scale64 * (h64 @ down64.t())
    y64.backward(dy.double())
    grads = [*(value.grad for value in inputs), mlp.up.leaves["w"].grad, mlp.down.leaves["w"].grad]
    names = ("dx", "dscale", "dup", "ddown")
    pairs = zip(names, grads, truth, strict=True)
    found = {name: relative(cast(Tensor, ours), cast(Tensor, exact.grad)) for name, ours, exact in pairs}
    return {"y": relative(y.detach(), y64.detach()), **found}


def beyond(errors: dict[str, float], rounded: float, few: bool) -> dict[str, float]:
    """Return the errors above their bound. For few tokens, the gradient of the scale depends on the scaled outputs."""
    bounds = {"y": rounded, "dx": rounded, "dw": BF16, "dscale": rounded if few else BF16}
    return {name: error for name, error in errors.items() if not error < bounds[name]}


def _on_grid(linear: Linear) -> Tensor:
    """Return the weights of the layer as in an artifact, in float64."""
    return linear.grids["w"].decode(linear.encode("w"), tuple(linear.w.shape)).double()
