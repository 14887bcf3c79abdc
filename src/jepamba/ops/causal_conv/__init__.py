"""The short causal convolution with SiLU.

    y_t = silu(bias + Σ_k kernel[W−1−k] · x_{t−k}),

x before the first token is the history, or 0 without a history. Tap k is dropped if one of the tokens t−k+1 … t has a
reset.

Legend: B batch, T time, C channels, W = d_conv taps, W1 = W − 1 previous inputs.
"""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from jepamba.ops.causal_conv.pytorch import conv_history, conv_silu_torch
from jepamba.ops.dispatch import use_triton

__all__ = ["conv_history", "conv_silu"]

MAX_TAPS = 8
"""Maximum taps of the kernels, which keep this many inputs in registers."""


def conv_silu(
    x_BTC: Float[Tensor, "B T C"],
    history_BCW: Float[Tensor, "B C W1"] | None,
    kernel_CW: Float[Tensor, "C W"],
    bias_C: Float[Tensor, " C"],
    reset_BT: Bool[Tensor, "B T"] | None,
) -> tuple[Float[Tensor, "B T C"], Float[Tensor, "B C W1"]]:
    """Return silu(convolution) and the history after the last token. No history means the start of a stream."""
    if use_triton(x_BTC) and 2 <= kernel_CW.shape[1] <= MAX_TAPS and x_BTC.numel() > 0:
        from jepamba.ops.causal_conv.triton import conv_silu_triton

        return conv_silu_triton(x_BTC, history_BCW, kernel_CW, bias_C, reset_BT)
    return conv_silu_torch(x_BTC, history_BCW, kernel_CW, bias_C, reset_BT)
