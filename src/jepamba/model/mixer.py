"""The Mamba-2 mixer (Dao & Gu 2024): projection, short causal convolution, state-space recurrence, gated norm.

Legend: B batch, T time, D model width, I inner width (H heads × P), G groups, N state, W taps of the convolution,
C = I + 2·G·N channels that pass through the convolution.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from jepamba.config import Model, Quant
from jepamba.model.layers import QuantLinear, exact_quantizer, small_quantizer, vector_quantizer
from jepamba.ops.causal_conv import conv_history
from jepamba.ops.dispatch import use_triton
from jepamba.ops.mixer.cpp import CppMixer, is_supported
from jepamba.ops.mixer.pytorch import mixer_torch
from jepamba.ops.mixer.sizes import MixerSizes
from jepamba.quant import QuantWeight


class MixerState(NamedTuple):
    """Recurrent state of a mixer."""

    conv_BCW: Tensor
    """Last W − 1 inputs of the convolution; zero before the start of the document or stream."""
    ssm_BHPN: Tensor
    """State of the recurrence, fp32."""


class Mamba2(nn.Module):
    """A Mamba-2 mixer, with the parameters and initial values of the authors' code."""

    def __init__(self, config: Model, quant: Quant) -> None:
        super().__init__()
        self.sizes = MixerSizes(config.heads, config.headdim, config.ngroups, config.d_state, config.chunk_size)
        self.channels, self.taps = self.sizes.channels, config.d_conv
        width = self.sizes.inner + self.channels + config.heads
        # Matrix products on a GPU are three times as fast with rows of a multiple of 32 bytes (docs/performance.md).
        self.row_width = -(-width // 16) * 16
        in_proj = QuantLinear(config.d_model, width, quant)
        out_proj = QuantLinear(self.sizes.inner, config.d_model, quant)
        bound = self.taps**-0.5
        conv_weight = torch.empty(self.channels, self.taps).uniform_(-bound, bound)
        self.conv_weight = QuantWeight(conv_weight, small_quantizer(quant))
        self.conv_bias = QuantWeight(torch.empty(self.channels).uniform_(-bound, bound), vector_quantizer(quant))
        dt_bias, A_log = torch.empty(config.heads), torch.empty(config.heads)
        # For a model without values, on the meta device, this would only import PyTorch's compiler (a second).
        if not dt_bias.is_meta:
            dt = torch.exp(torch.rand(config.heads) * (math.log(0.1) - math.log(1e-3)) + math.log(1e-3)).clamp_min(1e-4)
            # softplus⁻¹(dt) = dt + log(1 − exp(−dt)), so softplus(dt_bias) = dt initially.
            dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))
            A_log.uniform_(1, 16).log_()
        self.dt_bias = QuantWeight(dt_bias, exact_quantizer())
        self.A_log = QuantWeight(A_log, exact_quantizer())
        self.D = QuantWeight(torch.ones(config.heads), exact_quantizer())
        self.norm_weight = QuantWeight(torch.ones(self.sizes.inner), vector_quantizer(quant))
        # Initialized first, registered last: the order of the parameters determines the last bits of sums over them.
        self.in_proj, self.out_proj = in_proj, out_proj

    def initial_state(self, batch: int) -> MixerState:
        """Return the zero state at the start of a stream, for `batch` streams."""
        device = self.A_log.master.device
        return MixerState(
            torch.zeros(batch, self.channels, self.taps - 1, device=device),
            torch.zeros(batch, self.sizes.heads, self.sizes.headdim, self.sizes.d_state, device=device),
        )

    def forward(
        self,
        u_BTD: Float[Tensor, "B T D"],
        scale_D: Float[Tensor, " D"],
        reset_BT: Bool[Tensor, "B T"] | None,
        state: MixerState | None,
    ) -> tuple[Float[Tensor, "B T D"], MixerState]:
        """Return `scale` times the output, and the state after the last token; `state` None starts a stream."""
        one_token = u_BTD.shape[1] == 1 and state is not None and not torch.is_grad_enabled()
        projected_BTS = self.in_proj(u_BTD, rows=self.row_width if u_BTD.is_cuda and not one_token else 0)
        mix = self._implementation(projected_BTS, state)
        if one_token and mix == self._forward_fused:
            mix = self._forward_step
        normed_BTI, state = mix(projected_BTS, reset_BT, state)
        out_BTD: Tensor = self.out_proj(normed_BTI, scale_D)
        return out_BTD, state

    def _implementation(
        self, projected_BTS: Tensor, state: MixerState | None
    ) -> Callable[[Tensor, Tensor | None, MixerState | None], tuple[Tensor, MixerState]]:
        """Choose the fused kernels of the device where they support this pass. Those of a CPU are for training."""
        if state is not None and any(value.requires_grad for value in state):
            return self._forward_plain
        if use_triton(projected_BTS):
            from jepamba.ops.ssd import triton_launch

            sizes = self.sizes
            if triton_launch.is_supported(projected_BTS.dtype, sizes.headdim, sizes.d_state, sizes.chunk_size):
                return self._forward_fused
        elif is_supported(projected_BTS, self.sizes):
            return self._forward_cpp
        return self._forward_plain

    def _forward_fused(
        self, projected_BTS: Tensor, reset_BT: Tensor | None, state: MixerState | None
    ) -> tuple[Tensor, MixerState]:
        from jepamba.ops.mixer.fused import FusedMixer

        history_BCW, ssm_BHPN = (None, None) if state is None else state
        normed_BTI, ssm_BHPN = FusedMixer.apply(  # type: ignore[no-untyped-call]
            projected_BTS, *self._weights(), history_BCW, ssm_BHPN, reset_BT, self.sizes, torch.is_grad_enabled()
        )
        history_BCW = conv_history(self.sizes.split(projected_BTS)[1], history_BCW, self.taps, reset_BT)
        return normed_BTI, MixerState(history_BCW, ssm_BHPN)

    def _forward_step(
        self, projected_B1S: Tensor, reset_B1: Tensor | None, state: MixerState | None
    ) -> tuple[Tensor, MixerState]:
        from jepamba.ops.mixer.step import mixer_step

        assert state is not None
        out_B1I, *after = mixer_step(projected_B1S, *self._weights(), *state, reset_B1, self.sizes)
        return out_B1I, MixerState(*after)

    def _forward_plain(
        self, projected_BTS: Tensor, reset_BT: Tensor | None, state: MixerState | None
    ) -> tuple[Tensor, MixerState]:
        history_BCW, ssm_BHPN = self.initial_state(len(projected_BTS)) if state is None else state
        normed_BTI, history_BCW, ssm_BHPN = mixer_torch(
            projected_BTS, *self._weights(), history_BCW, ssm_BHPN, reset_BT, self.sizes
        )
        return normed_BTI, MixerState(history_BCW, ssm_BHPN)

    def _forward_cpp(
        self, projected_BTS: Tensor, reset_BT: Tensor | None, state: MixerState | None
    ) -> tuple[Tensor, MixerState]:
        history_BCW, ssm_BHPN = (None, None) if state is None else state
        normed_BTI, ssm_BHPN = CppMixer.apply(  # type: ignore[no-untyped-call]
            projected_BTS, *self._weights(), history_BCW, ssm_BHPN, reset_BT, self.sizes
        )
        history_BCW = conv_history(self.sizes.split(projected_BTS)[1], history_BCW, self.taps, reset_BT)
        return normed_BTI, MixerState(history_BCW, ssm_BHPN)

    def _weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        return (
            self.conv_weight.effective_weight(),
            self.conv_bias.effective_weight(),
            self.dt_bias.effective_weight(),
            self.A_log.effective_weight(),
            self.D.effective_weight(),
            self.norm_weight.effective_weight(),
        )
