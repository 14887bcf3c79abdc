"""The causal convolution with SiLU as an autograd function over a forward and a backward Triton kernel.

Legend: B batch, T time, C channels, W = d_conv taps, W1 = W − 1 previous inputs.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from jepamba.ops.causal_conv import triton_kernels as kernels
from jepamba.ops.causal_conv.pytorch import conv_history
from jepamba.ops.dispatch import on_device
from jepamba.ops.partial_sums import sum_partials

TUNED = {
    "forward": {"CHUNK": 64, "BLOCK": 128, "PREFETCH": 8, "num_warps": 1},
    "backward": {"CHUNK": 128, "BLOCK": 128, "PREFETCH": 8, "num_warps": 2},
}
"""Tokens and channels per program, tokens loaded ahead, warps."""


def conv_silu_triton(
    x_BTC: Float[Tensor, "B T C"],
    history_BCW: Float[Tensor, "B C W1"] | None,
    kernel_CW: Float[Tensor, "C W"],
    bias_C: Float[Tensor, " C"],
    reset_BT: Bool[Tensor, "B T"] | None,
) -> tuple[Float[Tensor, "B T C"], Float[Tensor, "B C W1"]]:
    """`conv_silu` with the kernels, for W from 2 to `MAX_TAPS`."""
    y_BTC = cast(Tensor, _ConvSilu.apply(x_BTC, history_BCW, kernel_CW, bias_C, reset_BT))  # type: ignore[no-untyped-call]
    return y_BTC, conv_history(x_BTC, history_BCW, kernel_CW.shape[1], reset_BT)


class _ConvSilu(torch.autograd.Function):
    """See `conv_silu`. Saves only its inputs."""

    @staticmethod
    def forward(
        ctx: Any, x_BTC: Tensor, history_BCW: Tensor | None, kernel_CW: Tensor, bias_C: Tensor, reset_BT: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(x_BTC, history_BCW, kernel_CW, bias_C, reset_BT)
        return conv_silu_forward(x_BTC, history_BCW, kernel_CW, bias_C, reset_BT)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        x_BTC, history_BCW, kernel_CW, bias_C, reset_BT = ctx.saved_tensors
        dx_BTC = torch.empty(x_BTC.shape, dtype=x_BTC.dtype, device=x_BTC.device)
        dkernel_CW, dbias_C, dhistory_BCW = conv_silu_backward(
            grads[0], x_BTC, history_BCW, kernel_CW, bias_C, reset_BT, dx_BTC
        )
        return dx_BTC, dhistory_BCW, dkernel_CW.to(kernel_CW.dtype), dbias_C.to(bias_C.dtype), None


def conv_silu_forward(
    x_BTC: Float[Tensor, "B T C"],
    history_BCW: Float[Tensor, "B C W1"] | None,
    kernel_CW: Float[Tensor, "C W"],
    bias_C: Float[Tensor, " C"],
    reset_BT: Bool[Tensor, "B T"] | None,
) -> Float[Tensor, "B T C"]:
    """Return silu(convolution). x can have strided rows. No autograd."""
    batch, length, channels = x_BTC.shape
    taps = kernel_CW.shape[1]
    out_BTC = torch.empty(x_BTC.shape, dtype=x_BTC.dtype, device=x_BTC.device)
    x_BTC = _with_adjacent_channels(x_BTC)
    history, flags = _optional(history_BCW, reset_BT, x_BTC)
    tuned = TUNED["forward"]
    grid = (-(-channels // tuned["BLOCK"]), -(-length // tuned["CHUNK"]), batch)
    with on_device(x_BTC):
        kernels.forward_kernel[grid](
            x_BTC, history, kernel_CW.contiguous(), bias_C.contiguous(), flags, out_BTC,
            length, channels, *x_BTC.stride()[:2], *flags.stride()[:2], *out_BTC.stride()[:2],
            W=taps, HAS_HISTORY=history_BCW is not None, HAS_RESET=reset_BT is not None, **tuned,
        )  # fmt: skip
    return out_BTC


def conv_silu_backward(
    dout_BTC: Float[Tensor, "B T C"],
    x_BTC: Float[Tensor, "B T C"],
    history_BCW: Float[Tensor, "B C W1"] | None,
    kernel_CW: Float[Tensor, "C W"],
    bias_C: Float[Tensor, " C"],
    reset_BT: Bool[Tensor, "B T"] | None,
    dx_BTC: Float[Tensor, "B T C"],
) -> tuple[Float[Tensor, "C W"], Float[Tensor, " C"], Float[Tensor, "B C W1"] | None]:
    """Write dx, which can have strided rows; return the gradients (kernel in fp32, bias in fp32, history)."""
    batch, length, channels = x_BTC.shape
    taps = kernel_CW.shape[1]
    dout_BTC, x_BTC = _with_adjacent_channels(dout_BTC), _with_adjacent_channels(x_BTC)
    history, flags = _optional(history_BCW, reset_BT, x_BTC)
    dhistory = torch.empty_like(history) if history_BCW is not None else history
    tuned = TUNED["backward"]
    grid = (-(-channels // tuned["BLOCK"]), -(-length // tuned["CHUNK"]), batch)
    partials = torch.empty(grid[1] * batch, channels * (taps + 1), dtype=torch.float32, device=x_BTC.device)
    with on_device(x_BTC):
        kernels.backward_kernel[grid](
            dout_BTC, x_BTC, history, kernel_CW.contiguous(), bias_C.contiguous(), flags, dx_BTC, dhistory, partials,
            length, channels, *dout_BTC.stride()[:2], *x_BTC.stride()[:2], *flags.stride()[:2], *dx_BTC.stride()[:2],
            W=taps, HAS_HISTORY=history_BCW is not None, HAS_RESET=reset_BT is not None, **tuned,
        )  # fmt: skip
    dkernel, dbias = sum_partials(partials).split([channels * taps, channels])
    return dkernel.view(channels, taps), dbias, dhistory if history_BCW is not None else None


def _with_adjacent_channels(tensor: Tensor) -> Tensor:
    """Return `tensor`, or a contiguous copy if its channels are not adjacent in memory."""
    return tensor if tensor.stride(2) == 1 else tensor.contiguous()


def _optional(history_BCW: Tensor | None, reset_BT: Tensor | None, x_BTC: Tensor) -> tuple[Tensor, Tensor]:
    """Return (contiguous history, resets as int8). x replaces a missing tensor, which the kernels do not read."""
    history = x_BTC if history_BCW is None else history_BCW.contiguous()
    return history, x_BTC if reset_BT is None else reset_BT.view(torch.int8)
