# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,untyped-decorator,valid-type,type-arg"
"""One token of the mixer between its two projections: one kernel for convolution and recurrence, then the gated norm.

A program has one head of one stream. The heads of a group share B and C, whose convolution each of them computes.
No gradient. Legend: B streams, S row of the projection's output (z, x, B, C, dt, then padding), I = d_inner (H heads ×
P), G groups, N state, C channels of the convolution, W taps.
"""

from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from jepamba.ops.dispatch import on_device
from jepamba.ops.mixer.sizes import MixerSizes
from jepamba.ops.norms import gated_norm
from jepamba.ops.ssd.triton_decays import _softplus


@triton.jit
@no_type_check
def _conv_silu(raw, taps, bias, old, old_c, old_w, new, C, c, keep, writes, W: tl.constexpr):
    """Return silu(convolution) of the channels `c` in fp32, and write their new history if this program `writes` it."""
    newest = tl.load(raw + c).to(tl.float32)
    total = tl.load(bias + c).to(tl.float32) + newest * tl.load(taps + c * W + W - 1).to(tl.float32)
    for w in tl.static_range(W - 1):
        past = tl.where(keep, tl.load(old + c * old_c + w * old_w).to(tl.float32), 0.0)
        total += past * tl.load(taps + c * W + w).to(tl.float32)
        if w > 0:
            tl.store(new + (w - 1) * C + c, past, mask=writes)
    if W > 1:
        tl.store(new + (W - 2) * C + c, newest, mask=writes)
    return total * tl.sigmoid(total)


@triton.jit
@no_type_check
def step_kernel(
    rows, row_b, taps, bias, dt_bias, A_log, D, old, old_b, old_c, old_w, state, reset, y, new, new_state,
    H, G, P: tl.constexpr, N: tl.constexpr, W: tl.constexpr, HAS_RESET: tl.constexpr,
):  # fmt: skip
    b, h = tl.program_id(0).to(tl.int64), tl.program_id(1)
    inner, C = H * P, H * P + 2 * G * N
    raw, old, new = rows + b * row_b + inner, old + b * old_b, new + b * (W - 1) * C
    keep = (tl.load(reset + b) == 0) if HAS_RESET else True
    p, n = tl.arange(0, P), tl.arange(0, N)
    group = h // (H // G)
    writes = n + h % (H // G) * N < N  # the first head of the group
    x_P = _conv_silu(raw, taps, bias, old, old_c, old_w, new, C, h * P + p, keep, p >= 0, W)
    B_N = _conv_silu(raw, taps, bias, old, old_c, old_w, new, C, inner + group * N + n, keep, writes, W)
    C_N = _conv_silu(raw, taps, bias, old, old_c, old_w, new, C, inner + (G + group) * N + n, keep, writes, W)
    dt = _softplus(tl.load(raw + C + h).to(tl.float32) + tl.load(dt_bias + h).to(tl.float32))
    decay = tl.exp(-dt * tl.exp(tl.load(A_log + h).to(tl.float32)))
    at_PN = (b * H + h) * P * N + p[:, None] * N + n[None, :]
    state_PN = tl.where(keep, decay * tl.load(state + at_PN), 0.0) + (dt * x_P)[:, None] * B_N[None, :]
    tl.store(new_state + at_PN, state_PN)
    y_P = tl.sum(state_PN * C_N[None, :], axis=1) + tl.load(D + h).to(tl.float32) * x_P
    tl.store(y + b * inner + h * P + p, y_P.to(y.dtype.element_ty))


def mixer_step(
    projected_B1S: Tensor,
    kernel_CW: Tensor,
    bias_C: Tensor,
    dt_bias_H: Tensor,
    A_log_H: Tensor,
    D_H: Tensor,
    norm_I: Tensor,
    history_BCW: Tensor,
    state_BHPN: Tensor,
    reset_B1: Tensor | None,
    sizes: MixerSizes,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `mixer_torch` returns for one token of each stream. P and N must be powers of two."""
    streams, taps = len(projected_B1S), kernel_CW.shape[1]
    y_B1I = projected_B1S.new_empty(streams, 1, sizes.inner)
    new_BWC = projected_B1S.new_empty(streams, taps - 1, sizes.channels)
    new_BHPN = torch.empty_like(state_BHPN, dtype=torch.float32, memory_format=torch.contiguous_format)
    with on_device(projected_B1S):
        step_kernel[(streams, sizes.heads)](
            projected_B1S, projected_B1S.stride(0), kernel_CW.contiguous(), bias_C, dt_bias_H, A_log_H, D_H,
            history_BCW, *history_BCW.stride(), state_BHPN.contiguous(),
            y_B1I if reset_B1 is None else reset_B1.contiguous().view(torch.int8), y_B1I, new_BWC, new_BHPN,
            sizes.heads, sizes.groups, sizes.headdim, sizes.d_state, taps, reset_B1 is not None,
        )  # fmt: skip
    z_B1I = sizes.split(projected_B1S)[0]
    return gated_norm(y_B1I, z_B1I, norm_I), new_BWC.transpose(1, 2), new_BHPN
