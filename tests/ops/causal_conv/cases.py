"""Random inputs for the kernels of the convolution and their comparison with the reference in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from jepamba.ops.causal_conv import conv_silu
from jepamba.ops.causal_conv.reference import conv_silu_reference
from ops.compare import relative


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
    grad_out = torch.randn(batch, length, channels, generator=g).to(dtype)
    grad_after = torch.randn(batch, channels, taps - 1, generator=g).to(dtype)

    def run(fused: bool) -> list[Tensor]:
        place, width = (device, None) if fused else ("cpu", torch.float64)
        leaves = {n: v.to(place, width or v.dtype).requires_grad_() for n, v in values.items()}
        x, flags = leaves["x"][..., 8 : 8 + channels], None if reset is None else reset.to(place)
        rest = (leaves["kernel"], leaves["bias"], flags)
        y, after = (conv_silu if fused else conv_silu_reference)(x, leaves.get("history"), *rest)
        assert not fused or "ConvSilu" in type(y.grad_fn).__name__
        grads_out = [grad_out.to(place, y.dtype), grad_after.to(place, y.dtype)]
        return [y, after, *torch.autograd.grad([y, after], list(leaves.values()), grads_out)]

    names = ("y", "after", *values)
    return {n: relative(a, b) for n, a, b in zip(names, run(True), run(False), strict=True)}
