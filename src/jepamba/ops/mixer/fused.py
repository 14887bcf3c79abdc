"""The mixer between its two projections as one autograd function over fused kernels (GPU).

The kernels read z, (x, B, C) and dt as slices of the output rows of the input projection, and write the gradients into
slices of one tensor, so nothing is split or concatenated. The backward pass keeps the outputs of projection and
convolution, y, the decays and the states at chunk starts. It recomputes everything else.

Legend: B batch, T time, S row of the projection's output (z, x, B, C, dt, then padding), I = d_inner (H heads × P),
G groups, N state, C = I + 2·G·N channels of the convolution, W taps, R columns of dt and padding, K programs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from jepamba.ops.causal_conv.triton import conv_silu_backward, conv_silu_forward
from jepamba.ops.mixer.sizes import MixerSizes
from jepamba.ops.norms import GATED_NORM_EPS
from jepamba.ops.norms.triton import gated_norm_backward, gated_norm_forward
from jepamba.ops.partial_sums import sum_partials
from jepamba.ops.ssd.triton_passes import run_backward, run_forward


class FusedMixer(torch.autograd.Function):
    """Returns the gated and normed output (B, T, I) and the final state (B, H, P, N) in fp32.

    Arguments: output rows of the projection; weight and bias of the convolution; dt_bias, A_log, D; weight of the gated
    norm; history of the convolution and initial state (None at the start of a stream; neither gets a gradient); resets;
    sizes; `needs_grad`, whether a backward pass follows, which `forward` cannot find out itself.
    """

    @staticmethod
    def forward(
        ctx: Any,
        projected_BTS: Tensor,
        kernel_CW: Tensor,
        bias_C: Tensor,
        dt_bias_H: Tensor,
        A_log_H: Tensor,
        D_H: Tensor,
        norm_I: Tensor,
        history_BCW: Tensor | None,
        initial_BHPN: Tensor | None,
        reset_BT: Tensor | None,
        sizes: MixerSizes,
        needs_grad: bool,
    ) -> tuple[Tensor, Tensor]:
        z_BTI, raw_BTC, raw_dt_BTH = sizes.split(projected_BTS)
        xBC_BTC = conv_silu_forward(raw_BTC, history_BCW, kernel_CW, bias_C, reset_BT)
        x, B, C = sizes.operands(xBC_BTC)
        y, final, starts, decays, documents = run_forward(
            x, raw_dt_BTH, A_log_H, B, C, D_H, initial_BHPN, reset_BT, sizes.chunk_size, needs_grad, dt_bias_H
        )
        y_BTI = y.flatten(-2)
        out_BTI = gated_norm_forward(y_BTI, z_BTI, norm_I.float(), GATED_NORM_EPS)
        ctx.save_for_backward(
            projected_BTS, kernel_CW, bias_C, dt_bias_H, A_log_H, D_H, norm_I, history_BCW, initial_BHPN, reset_BT,
            xBC_BTC, y_BTI, starts, decays, documents,
        )  # fmt: skip
        ctx.sizes = sizes
        ctx.set_materialize_grads(False)
        return out_BTI, final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        (
            projected_BTS, kernel_CW, bias_C, dt_bias_H, A_log_H, D_H, norm_I, history_BCW, initial_BHPN, reset_BT,
            xBC_BTC, y_BTI, starts, decays, documents,
        ) = ctx.saved_tensors  # fmt: skip
        sizes: MixerSizes = ctx.sizes
        dout_BTI, dfinal_BHPN = grads
        if dout_BTI is None:
            dout_BTI = torch.zeros_like(y_BTI)
        z_BTI, raw_BTC, raw_dt_BTH = sizes.split(projected_BTS)
        dprojected_BTS = torch.empty_like(projected_BTS)
        dz_BTI, draw_BTC, _ = sizes.split(dprojected_BTS)
        # The padding columns have zero gradient. The kernel that writes the gradient of dt writes these zeros too.
        draw_dt_BTR = dprojected_BTS[..., sizes.inner + sizes.channels :]
        dy_BTI, dnorm_I = gated_norm_backward(dout_BTI, y_BTI, z_BTI, norm_I.float(), GATED_NORM_EPS, dz_BTI)
        x, B, C = sizes.operands(xBC_BTC)
        dxBC_BTC = torch.empty_like(xBC_BTC)
        dx, dB, dC = sizes.operands(dxBC_BTC)
        partials_K3H, _ = run_backward(
            dy_BTI.view(x.shape), dfinal_BHPN, x, raw_dt_BTH, A_log_H, B, C, D_H, initial_BHPN, reset_BT,
            starts, decays, documents, sizes.chunk_size, (dx, draw_dt_BTR, dB, dC), dt_bias_H,
        )  # fmt: skip
        dA_log_H, dD_H, ddt_bias_H = sum_partials(partials_K3H)
        dkernel_CW, dbias_C, _ = conv_silu_backward(
            dxBC_BTC, raw_BTC, history_BCW, kernel_CW, bias_C, reset_BT, draw_BTC
        )
        return (
            dprojected_BTS,
            dkernel_CW.to(kernel_CW.dtype),
            dbias_C.to(bias_C.dtype),
            ddt_bias_H.to(dt_bias_H.dtype),
            dA_log_H.to(A_log_H.dtype),
            dD_H.to(D_H.dtype),
            dnorm_I.to(norm_I.dtype),
            None, None, None, None, None,
        )  # fmt: skip
