"""The mixer between its two projections from separate operators, each in plain PyTorch or with its own kernels.

On the CPU and in float64 all are plain PyTorch: the reference for the fused kernels.

Legend: B batch, T time, S row of the projection's output (z, x, B, C, dt, then padding), I = d_inner (H heads × P),
N state, C channels of the convolution, W taps, W1 = W − 1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from jepamba.ops.causal_conv import conv_silu
from jepamba.ops.mixer.sizes import MixerSizes
from jepamba.ops.norms import gated_norm
from jepamba.ops.ssd import ssd


def mixer_torch(
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
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gated and normed output (B, T, I), the last inputs of the convolution (B, C, W1) and the final state.

    Arguments: as those of `FusedMixer`.
    """
    z_BTI, raw_BTC, raw_dt_BTH = sizes.split(projected_BTS)
    xBC_BTC, history_BCW = conv_silu(raw_BTC, history_BCW, kernel_CW, bias_C, reset_BT)
    x_BTHP, B_BTGN, C_BTGN = sizes.operands(xBC_BTC)
    wide = torch.promote_types(raw_dt_BTH.dtype, torch.float32)
    y_BTHP, final_BHPN = ssd(
        x_BTHP,
        F.softplus(raw_dt_BTH.to(wide) + dt_bias_H),
        -torch.exp(A_log_H),
        B_BTGN,
        C_BTGN,
        D_H,
        initial_BHPN,
        reset_BT,
        chunk_size=sizes.chunk_size,
    )
    return gated_norm(y_BTHP.flatten(-2), z_BTI, norm_I), history_BCW, final_BHPN
