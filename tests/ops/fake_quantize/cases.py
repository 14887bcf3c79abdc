"""Weights that are hard to quantize, and the comparison of the kernels with `decode(encode(w))` to the bit."""

from __future__ import annotations

from unittest import mock

import torch
from torch import Tensor

from jepamba.quant import IntQuantizer, Quantizer, fake_quantize_into, quantizer_named

QUANTIZERS = [*(f"int{bits}" for bits in range(2, 9)), "bf16"]
"""The quantizers that have a kernel."""


def hard_weights(columns: int = 131) -> Tensor:
    """Return rows of values over the whole range of fp32, ties, zeros, infinities and NaN."""
    w = torch.randn(40, columns)
    w[1:3] = torch.tensor([[0.0], [-0.0]])
    # From sums that overflow to values that BF16 does not have; the last rows have a scale of 0.
    w[3:20] *= torch.exp2(torch.linspace(127, -148, 17))[:, None]
    w[20] = 3.4e38
    w[21] = 2.0**-149
    w[22, 0] = torch.inf
    w[23, -1] = -torch.inf
    w[24, columns // 2] = torch.nan
    w[25] = torch.exp2(torch.linspace(-20, 3, columns))
    w[26:32] = torch.randint(0x00800000, 0x7F000000, (6, columns)).to(torch.int32).view(torch.float32)
    # Steps of a half, with the largest magnitude q_max or FP8's 448: each second value is a tie for its bits.
    for row, largest in enumerate((1, 3, 7, 15, 31, 63, 127, 448), start=32):
        w[row] = (torch.arange(columns) % (4 * largest + 1)) / 2 - largest
        w[row, 0] = largest
    return w


def different(ours: Tensor, truth: Tensor) -> int:
    """Return the number of values that differ in their bits; all NaN are equal."""
    assert ours.dtype == truth.dtype
    assert ours.shape == truth.shape
    bits = torch.int32 if ours.dtype == torch.float32 else torch.int16
    return int(((ours.view(bits) != truth.view(bits)) & ~(ours.isnan() & truth.isnan())).sum())


def plain(w: Tensor, quantizer: Quantizer, dtype: torch.dtype) -> Tensor:
    """Return what the artifact's weight is, cast as the cached one."""
    return quantizer.decode(quantizer.encode(w), tuple(w.shape)).to(dtype)


def fused(w: Tensor, quantizer: Quantizer, dtype: torch.dtype) -> Tensor:
    """Return what the kernel writes, and fail where no kernel runs."""
    out = torch.full_like(w, 123.0, dtype=dtype)
    with mock.patch.object(type(quantizer), "encode", side_effect=AssertionError("the plain path ran")):
        fake_quantize_into(out, w, quantizer)
    return out


def differences(w: Tensor, name: str, dtype: torch.dtype = torch.float32) -> int:
    """Return the number of values at which the kernel and the quantizer differ, on the device of `w`."""
    return different(fused(w, quantizer_named(name), dtype), plain(w, quantizer_named(name), dtype))


def half_steps(bits: int) -> tuple[Tensor, Tensor]:
    """Return weights at all half steps of 2^−5, and their values by Python's `round`, half to even."""
    q_max = IntQuantizer(bits).q_max
    halves = range(-2 * q_max, 2 * q_max + 1)
    rounded = torch.tensor([float(round(half / 2)) for half in halves])
    return torch.tensor([half / 2 for half in halves]) / 32, rounded / 32
