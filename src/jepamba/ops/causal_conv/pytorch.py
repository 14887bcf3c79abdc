"""The causal convolution in plain PyTorch.

Legend: B batch, T time, C channels, W = d_conv taps, W1 = W − 1 previous inputs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


def causal_conv(
    x_BTC: Float[Tensor, "B T C"],
    history_BCW: Float[Tensor, "B C W1"],
    kernel_CW: Float[Tensor, "C W"],
    bias_C: Float[Tensor, " C"],
    reset_BT: Bool[Tensor, "B T"] | None,
) -> tuple[Float[Tensor, "B T C"], Float[Tensor, "B C W1"]]:
    """Return the convolution without SiLU, and the history after the last token."""
    taps, length = kernel_CW.shape[1], x_BTC.shape[1]
    kernel_CW, bias_C = kernel_CW.to(x_BTC.dtype), bias_C.to(x_BTC.dtype)
    padded_BSC = torch.cat([history_BCW.transpose(1, 2).to(x_BTC.dtype), x_BTC], dim=1)
    new_history_BCW = conv_history(x_BTC, history_BCW, taps, reset_BT)
    if reset_BT is None:
        y_BCT = F.conv1d(padded_BSC.transpose(1, 2), kernel_CW.unsqueeze(1), bias_C, groups=kernel_CW.shape[0])
        return y_BCT.transpose(1, 2), new_history_BCW
    # document is the number of resets up to each position. The history is in document 0.
    document_BT = reset_BT.cumsum(1)
    document_BS = F.pad(document_BT, (taps - 1, 0))
    y_BTC = torch.addcmul(bias_C, x_BTC, kernel_CW[:, -1])
    for lag in range(1, taps):
        start = taps - 1 - lag
        same_BT1 = (document_BS[:, start : start + length] == document_BT).unsqueeze(-1)
        y_BTC = y_BTC + padded_BSC[:, start : start + length] * same_BT1 * kernel_CW[:, taps - 1 - lag]
    return y_BTC, new_history_BCW


def conv_history(
    x_BTC: Float[Tensor, "B T C"],
    history_BCW: Float[Tensor, "B C W1"] | None,
    taps: int,
    reset_BT: Bool[Tensor, "B T"] | None,
) -> Float[Tensor, "B C W1"]:
    """Return the last W − 1 inputs in the dtype of x, with 0 for inputs before a stream or document start."""
    batch, length, channels = x_BTC.shape
    num_history = taps - 1
    last_BSC = x_BTC[:, max(0, length - num_history) :]
    if length < num_history:
        before_BSC = (
            x_BTC.new_zeros(batch, num_history, channels) if history_BCW is None else history_BCW.transpose(1, 2)
        )
        last_BSC = torch.cat([before_BSC[:, length:].to(x_BTC.dtype), last_BSC], dim=1)
    if reset_BT is not None:
        # A later token can read a position only if no reset follows it.
        later_BS = F.pad(reset_BT, (num_history, 0))[:, length:].flip(1).cumsum(1).flip(1)[:, 1:]
        last_BSC = last_BSC * (F.pad(later_BS, (0, 1)) == 0).unsqueeze(-1)
    return last_BSC.transpose(1, 2)


def conv_silu_torch(
    x_BTC: Float[Tensor, "B T C"],
    history_BCW: Float[Tensor, "B C W1"] | None,
    kernel_CW: Float[Tensor, "C W"],
    bias_C: Float[Tensor, " C"],
    reset_BT: Bool[Tensor, "B T"] | None,
) -> tuple[Float[Tensor, "B T C"], Float[Tensor, "B C W1"]]:
    """`conv_silu` in plain PyTorch."""
    if history_BCW is None:
        history_BCW = x_BTC.new_zeros(len(x_BTC), x_BTC.shape[2], kernel_CW.shape[1] - 1)
    y_BTC, new_history_BCW = causal_conv(x_BTC, history_BCW, kernel_CW, bias_C, reset_BT)
    return F.silu(y_BTC), new_history_BCW
