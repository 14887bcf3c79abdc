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
from jepamba.fused.conv import conv_silu
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
        self.add("conv_bias", torch.empty(self.channels).uniform_(-bound, bound), vector_grid())
        dt = torch.exp(torch.rand(self.heads) * (math.log(0.1) - math.log(1e-3)) + math.log(1e-3)).clamp_min(1e-4)
        # softplus⁻¹(dt) = dt + log(1 − exp(−dt)), so that softplus(dt_bias) is dt at the start.
        self.add("dt_bias", dt + torch.log(-torch.expm1(-dt)), exact_grid())
        self.add("A_log", torch.empty(self.heads).uniform_(1, 16).log(), exact_grid())
        self.add("D", torch.ones(self.heads), exact_grid())
        self.add("norm_weight", torch.ones(self.inner), vector_grid())

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
        xBC_BTC, conv_BCW = conv_silu(
            xBC_BTC, state.conv_BCW, self.weight("conv_weight"), self.weight("conv_bias"), reset_BT
        )
        group = self.groups * self.d_state
        x_BTI, B_BTC, C_BTC = torch.split(xBC_BTC, [self.inner, group, group], dim=-1)
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
