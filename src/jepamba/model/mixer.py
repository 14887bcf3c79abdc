"""The Mamba-2 mixer (Dao & Gu 2024): projection, short causal convolution, state-space recurrence, gated norm.

Legend: B batch, T time, D model width, I inner width (H heads × P), G groups, N state, W taps of the convolution,
C = I + 2·G·N channels that pass through the convolution.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from jepamba.config import Model, Quant
from jepamba.model.layers import Gridded, Linear, exact_grid, small_grid, vector_grid
from jepamba.ssd import ssd

GATED_NORM_EPS = 1e-5
"""Epsilon of the gated RMSNorm before the output projection."""


class MixerState(NamedTuple):
    """What a mixer hands from one piece of a stream to the next: everything it knows of the past."""

    conv_BCW: Tensor
    """The last W − 1 inputs of the convolution, zeros where a document (or the stream) started after them."""
    ssm_BHPN: Tensor
    """State of the recurrence, fp32."""


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


class Mamba2(Gridded):
    """A Mamba-2 mixer; parameters and initial values as in spec section 1."""

    def __init__(self, config: Model, quant: Quant) -> None:
        super().__init__()
        self.heads, self.headdim = config.heads, config.headdim
        self.groups, self.d_state = config.ngroups, config.d_state
        self.inner, self.chunk = config.inner_dim, config.chunk
        self.channels = self.inner + 2 * self.groups * self.d_state
        self.taps = config.conv_width
        self.in_proj = Linear(config.dim, self.inner + self.channels + self.heads, quant)
        self.out_proj = Linear(self.inner, config.dim, quant)
        bound = self.taps**-0.5
        self.add("conv_weight", torch.empty(self.channels, self.taps).uniform_(-bound, bound), small_grid(quant))
        self.add("conv_bias", torch.empty(self.channels).uniform_(-bound, bound), vector_grid(quant))
        dt = torch.exp(torch.rand(self.heads) * (math.log(0.1) - math.log(1e-3)) + math.log(1e-3)).clamp_min(1e-4)
        # softplus⁻¹(dt) = dt + log(1 − exp(−dt)), so that softplus(dt_bias) is dt at the start.
        self.add("dt_bias", dt + torch.log(-torch.expm1(-dt)), exact_grid())
        self.add("A_log", torch.empty(self.heads).uniform_(1, 16).log(), exact_grid())
        self.add("D", torch.ones(self.heads), exact_grid())
        self.add("norm_weight", torch.ones(self.inner), vector_grid(quant))

    def initial_state(self, batch: int) -> MixerState:
        """The state at a stream's start: nothing seen."""
        device = self.weight("A_log").device
        return MixerState(
            torch.zeros(batch, self.channels, self.taps - 1, device=device),
            torch.zeros(batch, self.heads, self.headdim, self.d_state, device=device),
        )

    def forward(
        self, u_BTD: Float[Tensor, "B T D"], reset_BT: Bool[Tensor, "B T"] | None, state: MixerState
    ) -> tuple[Float[Tensor, "B T D"], MixerState]:
        """The mixed tokens and the state after the last of them."""
        z_BTI, xBC_BTC, dt_BTH = torch.split(self.in_proj(u_BTD), [self.inner, self.channels, self.heads], dim=-1)
        xBC_BTC, conv_BCW = causal_conv(
            xBC_BTC, state.conv_BCW, self.weight("conv_weight"), self.weight("conv_bias"), reset_BT
        )
        group = self.groups * self.d_state
        x_BTI, B_BTC, C_BTC = torch.split(F.silu(xBC_BTC), [self.inner, group, group], dim=-1)
        y_BTHP, ssm_BHPN = ssd(
            torch.unflatten(x_BTI, -1, (self.heads, self.headdim)),
            F.softplus(dt_BTH.float() + self.weight("dt_bias")),
            -torch.exp(self.weight("A_log")),
            torch.unflatten(B_BTC, -1, (self.groups, self.d_state)),
            torch.unflatten(C_BTC, -1, (self.groups, self.d_state)),
            self.weight("D"),
            state.ssm_BHPN,
            reset_BT,
            chunk=self.chunk,
        )
        gated_BTI = y_BTHP.flatten(-2) * F.silu(z_BTI)
        normed_BTI = F.rms_norm(gated_BTI.float(), (self.inner,), self.weight("norm_weight"), eps=GATED_NORM_EPS)
        out_BTD: Tensor = self.out_proj(normed_BTI.to(gated_BTI.dtype))
        return out_BTD, MixerState(conv_BCW, ssm_BHPN)
