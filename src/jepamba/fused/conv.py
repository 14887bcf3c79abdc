"""Causal convolution and SiLU (temporary plain version)."""

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
    """Depthwise causal convolution that never reaches across a reset; also the history after the last token.

    y_t = bias + Σ_k kernel[W−1−k] · x_{t−k}, where x before the first token is `history` and a tap is dropped when a
    reset lies at one of the tokens t−k+1 … t.
    """
    taps, length = kernel_CW.shape[1], x_BTC.shape[1]
    kernel_CW, bias_C = kernel_CW.to(x_BTC.dtype), bias_C.to(x_BTC.dtype)
    padded_BSC = torch.cat([history_BCW.transpose(1, 2).to(x_BTC.dtype), x_BTC], dim=1)
    if reset_BT is None:
        y_BCT = F.conv1d(padded_BSC.transpose(1, 2), kernel_CW.unsqueeze(1), bias_C, groups=kernel_CW.shape[0])
        return y_BCT.transpose(1, 2), padded_BSC[:, length:].transpose(1, 2)
    # document counts the resets up to each position; history lies in document 0.
    document_BT = reset_BT.cumsum(1)
    document_BS = F.pad(document_BT, (taps - 1, 0))
    y_BTC = torch.addcmul(bias_C, x_BTC, kernel_CW[:, -1])
    for lag in range(1, taps):
        start = taps - 1 - lag
        same_BT1 = (document_BS[:, start : start + length] == document_BT).unsqueeze(-1)
        y_BTC = y_BTC + padded_BSC[:, start : start + length] * same_BT1 * kernel_CW[:, taps - 1 - lag]
    keep_BW1 = (document_BS[:, length:] == document_BT[:, -1:]).unsqueeze(-1)
    return y_BTC, (padded_BSC[:, length:] * keep_BW1).transpose(1, 2)


def conv_silu(x_BTC, history_BCW, kernel_CW, bias_C, reset_BT):
    y, h = causal_conv(x_BTC, history_BCW, kernel_CW, bias_C, reset_BT)
    return F.silu(y), h


def conv_history(x_BTC, history_BCW, taps, reset_BT):
    raise NotImplementedError


def conv_silu_forward(*a):
    raise NotImplementedError


conv_silu_backward = conv_silu_forward
