"""Soft cap, cross-entropy, logsumexp and their gradient, of rows of raw logits.

Legend: n rows (tokens), V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from jepamba.ops.dispatch import on_device, use_triton

BLOCK = 16384
"""Columns that a program holds at once at most; a longer row is read twice."""
WARPS = 2112
"""Warps that share the rows: sixteen for each of a large GPU's 132 multiprocessors, each with 512 columns of a row."""
LONG_BLOCK = 4096
"""Columns that a program holds of such a row."""
LONG_PROGRAMS = 1056
"""Programs that share the gradient of such rows."""
PER_WARP, STAGES = 512, 3
"""Columns of a warp, and rows on their way at once."""
BOUND = 30.0
"""Logits within ± this need no maximum taken off: e^30 times any vocabulary is far from fp32's largest number."""


class RowLosses(NamedTuple):
    """What is known of each row, and the gradients of Σ (ce + z_weight·lse²)·scale if they were asked for."""

    ce_n: Float32[Tensor, " n"]
    """Cross-entropy, nats."""
    lse_n: Float32[Tensor, " n"]
    """Logsumexp of the capped logits."""
    grad_nV: Float[Tensor, "n V"] | None
    """By the raw logits, in their dtype."""
    grad_bias_V: Float32[Tensor, " V"] | None


def softcap(logits: Tensor, kind: str, cap: float) -> Tensor:
    """`logits` squeezed into ±cap: by cap·tanh(logits/cap), by its degree-5 polynomial stand-in, or not at all.

    The polynomial is u·(1 − u²/3 + u⁴/15) with u = clamp(logits/cap, ±2), its value clamped to ±1 (spec section 1).
    """
    if kind == "off":
        return logits
    if kind == "tanh":
        return cap * torch.tanh(logits / cap)
    u = (logits / cap).clamp(-2.0, 2.0)
    square = u * u
    return cap * (u * (1.0 - square / 3.0 + square * square / 15.0)).clamp(-1.0, 1.0)


def row_losses(
    raw_nV: Float[Tensor, "n V"],
    bias_V: Float[Tensor, " V"],
    targets_n: Int[Tensor, " n"],
    kind: str,
    cap: float,
    *,
    z_weight: float = 0.0,
    scale: float | None = None,
) -> RowLosses:
    """Losses of softcap(raw + bias) and, with a `scale`, gradients; overwrites `raw` (contiguous). No autograd."""
    if use_triton(raw_nV):
        return row_losses_triton(raw_nV, bias_V, targets_n, kind, cap, z_weight=z_weight, scale=scale)
    return row_losses_torch(raw_nV, bias_V, targets_n, kind, cap, z_weight=z_weight, scale=scale)


def row_losses_torch(
    raw_nV: Tensor,
    bias_V: Tensor,
    targets_n: Tensor,
    kind: str,
    cap: float,
    *,
    z_weight: float = 0.0,
    scale: float | None = None,
) -> RowLosses:
    """`row_losses` in plain PyTorch; everything over the vocabulary is fp32 (or fp64, if `raw` is)."""
    wide = torch.promote_types(raw_nV.dtype, torch.float32)
    targets_n1 = targets_n.unsqueeze(1)
    logits_nV, slope_nV = _cap_in_place(raw_nV.to(wide).add_(bias_V), kind, cap)
    lse_n1 = logits_nV.logsumexp(1, keepdim=True)
    ce_n = (lse_n1 - logits_nV.gather(1, targets_n1)).squeeze(1)
    if scale is None:
        return RowLosses(ce_n, lse_n1.squeeze(1), None, None)
    # d ce = softmax − onehot;  d lse² = 2·lse·softmax.
    grad_nV = logits_nV.sub_(lse_n1).exp_().mul_((1.0 + 2.0 * z_weight * lse_n1) * scale)
    grad_nV.scatter_add_(1, targets_n1, torch.full_like(lse_n1, -scale))
    if slope_nV is not None:
        grad_nV.mul_(slope_nV)
    return RowLosses(ce_n, lse_n1.squeeze(1), grad_nV.to(raw_nV.dtype), grad_nV.sum(0))


def _cap_in_place(raw: Tensor, kind: str, cap: float) -> tuple[Tensor, Tensor | None]:
    """(softcap(raw), its slope, or None for 1 everywhere); overwrites `raw`.

    The same function as `softcap`, written in place: these passes over the vocabulary are most of what a small model
    does besides matrix products. The slope is 0 where the polynomial's value is clamped.
    """
    if kind == "off":
        return raw, None
    if kind == "tanh":
        unit = raw.div_(cap).tanh_()
        return unit * cap, unit.square_().neg_().add_(1.0)
    u = raw.div_(cap).clamp_(-2.0, 2.0)
    square = u * u
    slope = (square / 3.0).sub_(1.0).mul_(square).add_(1.0)
    unit = square.div(15.0).sub_(1.0 / 3.0).mul_(square).add_(1.0).mul_(u)
    slope.mul_(unit.abs() < 1.0)
    return unit.clamp_(-1.0, 1.0).mul_(cap), slope


def row_losses_triton(
    raw_nV: Tensor,
    bias_V: Tensor,
    targets_n: Tensor,
    kind: str,
    cap: float,
    *,
    z_weight: float = 0.0,
    scale: float | None = None,
) -> RowLosses:
    """`row_losses` by the kernels: the logits are read once (twice for more than `BLOCK` columns) and written once."""
    ce_n, lse_n = raw_nV.new_empty(2, len(raw_nV), dtype=torch.float32).unbind()
    with on_device(raw_nV):
        parts_pV = _launch(raw_nV, bias_V, targets_n, ce_n, lse_n, kind, cap, 1.0, z_weight, scale)
    if parts_pV is None:
        return RowLosses(ce_n, lse_n, None, None)
    return RowLosses(ce_n, lse_n, raw_nV, parts_pV.sum(0))


def token_nats(
    logits_nV: Float[Tensor, "n V"], targets_n: Int[Tensor, " n"], temperature: float
) -> Float[Tensor, " n"]:
    """−ln p of each target under softmax(logits / temperature); the logits are final and stay as they are."""
    if use_triton(logits_nV) and logits_nV.is_contiguous():
        ce_n, lse_n = logits_nV.new_empty(2, len(logits_nV), dtype=torch.float32).unbind()
        with on_device(logits_nV):
            _launch(logits_nV, None, targets_n, ce_n, lse_n, "off", 1.0, temperature, 0.0, None)
        return ce_n
    scaled_nV = logits_nV if temperature == 1.0 else logits_nV / temperature
    return scaled_nV.logsumexp(-1) - scaled_nV.gather(-1, targets_n.unsqueeze(-1)).squeeze(-1)


def _launch(
    raw_nV: Tensor,
    bias_V: Tensor | None,
    targets_n: Tensor,
    ce_n: Tensor,
    lse_n: Tensor,
    kind: str,
    cap: float,
    temperature: float,
    z_weight: float,
    scale: float | None,
) -> Tensor | None:
    """Fill ce and lse and, with a `scale`, put the gradient into `raw` and return parts of its column sums."""
    from jepamba.ops.cross_entropy import triton_kernels as kernels

    rows, vocab = raw_nV.shape
    assert raw_nV.is_contiguous()
    targets_n = targets_n.contiguous()
    bias = raw_nV if bias_V is None else bias_V.contiguous()
    columns = max(16, 1 << (vocab - 1).bit_length())
    cap = 1.0 if kind == "off" else cap
    given = {"KIND": kind, "HAS_BIAS": bias_V is not None}
    if columns <= BLOCK:
        at_once, warps = max(1, 2048 // columns), max(4, columns // PER_WARP)
        programs = min(WARPS // warps, -(-rows // at_once))
        parts_pV = None if scale is None else raw_nV.new_empty(programs, vocab, dtype=torch.float32)
        kernels.row_kernel[(programs,)](
            raw_nV, bias, targets_n, ce_n, lse_n, ce_n if parts_pV is None else parts_pV,
            rows, vocab, cap, 1.0 / temperature, scale or 0.0, 2.0 * z_weight,
            BOUNDED=kind != "off" and cap <= BOUND * temperature, LEARN=parts_pV is not None,
            FULL=at_once == 1 and columns == vocab, R=at_once, BLOCK=columns, STAGES=STAGES, num_warps=warps, **given,
        )  # fmt: skip
        return parts_pV
    kernels.logsumexp_kernel[(rows,)](
        raw_nV, bias, targets_n, ce_n, lse_n, vocab, cap, 1.0 / temperature, BLOCK=LONG_BLOCK, num_warps=8, **given
    )
    if scale is None:
        return None
    block, at_once = 1024, 4
    blocks = -(-vocab // block)
    programs = max(1, min(LONG_PROGRAMS // blocks, -(-rows // at_once)))
    parts_pV = raw_nV.new_empty(programs, vocab, dtype=torch.float32)
    kernels.gradient_kernel[(blocks, programs)](
        raw_nV, bias, targets_n, lse_n, parts_pV, rows, vocab, cap, scale, 2.0 * z_weight,
        R=at_once, BLOCK=block, STAGES=1, num_warps=4, **given,
    )  # fmt: skip
    return parts_pV
