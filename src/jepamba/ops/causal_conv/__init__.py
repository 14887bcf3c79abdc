"""The short causal convolution with SiLU.

    y_t = silu(bias + Σ_k kernel[W−1−k] · x_{t−k}),

where x before the first token is the history (zeros if there is none) and a tap is dropped when a reset lies at one
of the tokens t−k+1 … t.

Legend: B batch, T time, C channels, W taps, W1 = W − 1 inputs that a later token may still see.
"""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from jepamba.ops.causal_conv.pytorch import conv_history, conv_silu_torch
from jepamba.ops.dispatch import use_triton

__all__ = ["conv_history", "conv_silu"]

MAX_TAPS = 8
"""Taps that the kernels take: as many inputs are held in registers."""


def conv_silu(
    x_BTC: Float[Tensor, "B T C"],
    history_BCW: Float[Tensor, "B C W1"] | None,
    kernel_CW: Float[Tensor, "C W"],
    bias_C: Float[Tensor, " C"],
    reset_BT: Bool[Tensor, "B T"] | None,
) -> tuple[Float[Tensor, "B T C"], Float[Tensor, "B C W1"]]:
    """silu(convolution) and the history after the last token; no history means the start of a stream."""
    if use_triton(x_BTC) and 2 <= kernel_CW.shape[1] <= MAX_TAPS and x_BTC.numel() > 0:
        from jepamba.ops.causal_conv.triton import conv_silu_triton

        return conv_silu_triton(x_BTC, history_BCW, kernel_CW, bias_C, reset_BT)
    return conv_silu_torch(x_BTC, history_BCW, kernel_CW, bias_C, reset_BT)
