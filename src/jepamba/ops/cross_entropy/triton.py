"""Losses of rows of raw logits, and their gradients, with Triton kernels.

Legend: n rows (tokens), V vocabulary.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from jepamba.ops.cross_entropy import triton_kernels as kernels
from jepamba.ops.cross_entropy.pytorch import RowLosses
from jepamba.ops.dispatch import on_device

BLOCK = 16384
"""Maximum row length for the one-pass kernel. A longer row is read twice."""

WARPS = 16 * 132
"""Warps of the one-pass kernel: 16 for each multiprocessor of an H100."""

MAX_WARPS = 16
"""Of a program. With 32, rows of 16,384 columns take a fifth longer (docs/results/gpu-step-2026-11-29.md)."""

LONG_BLOCK = 4096
"""Columns of a tile of the two-pass kernel."""

LONG_PROGRAMS = 1056
"""Maximum programs of the gradient kernel for long rows."""

PER_WARP = 512
"""Columns per warp, up to `MAX_WARPS`."""

BOUND = 30.0
"""For logits within ±30, the sum of exponentials cannot overflow fp32, so the maximum is not subtracted."""


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
    """`row_losses` with kernels that read the logits once (twice above `BLOCK` columns) and write them once."""
    ce_n, lse_n = raw_nV.new_empty(2, len(raw_nV), dtype=torch.float32).unbind()
    with on_device(raw_nV):
        partials_pV = _launch(raw_nV, bias_V, targets_n, ce_n, lse_n, kind, cap, 1.0, z_weight, scale)
    if partials_pV is None:
        return RowLosses(ce_n, lse_n, None, None)
    return RowLosses(ce_n, lse_n, raw_nV, partials_pV.sum(0))


def token_nats_triton(
    logits_nV: Float[Tensor, "n V"], targets_n: Int[Tensor, " n"], temperature: float
) -> Float[Tensor, " n"]:
    """`token_nats` with the kernels, for contiguous logits."""
    ce_n, lse_n = logits_nV.new_empty(2, len(logits_nV), dtype=torch.float32).unbind()
    with on_device(logits_nV):
        _launch(logits_nV, None, targets_n, ce_n, lse_n, "off", 1.0, temperature, 0.0, None)
    return ce_n


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
    """Write ce and lse. With a `scale`, write the gradient to `raw` and return partial sums of its columns."""
    rows, vocab = raw_nV.shape
    assert raw_nV.is_contiguous()
    targets_n = targets_n.contiguous()
    bias = raw_nV if bias_V is None else bias_V.contiguous()
    columns = max(16, 1 << (vocab - 1).bit_length())
    cap = 1.0 if kind == "off" else cap
    common = {"KIND": kind, "HAS_BIAS": bias_V is not None}
    if columns <= BLOCK:
        rows_per_program, warps = max(1, 2048 // columns), min(max(4, columns // PER_WARP), MAX_WARPS)
        programs = min(WARPS // warps, -(-rows // rows_per_program))
        stages = 3 if columns <= MAX_WARPS * PER_WARP else 2  # rows in flight
        partials_pV = None if scale is None else raw_nV.new_empty(programs, vocab, dtype=torch.float32)
        kernels.row_kernel[(programs,)](
            raw_nV, bias, targets_n, ce_n, lse_n, ce_n if partials_pV is None else partials_pV,
            rows, vocab, cap, 1.0 / temperature, scale or 0.0, 2.0 * z_weight,
            BOUNDED=kind != "off" and cap <= BOUND * temperature, WITH_GRAD=partials_pV is not None,
            FULL=rows_per_program == 1 and columns == vocab, R=rows_per_program, BLOCK=columns, STAGES=stages,
            num_warps=warps, **common,
        )  # fmt: skip
        return partials_pV
    kernels.logsumexp_kernel[(rows,)](
        raw_nV, bias, targets_n, ce_n, lse_n, vocab, cap, 1.0 / temperature, BLOCK=LONG_BLOCK, num_warps=8, **common
    )
    if scale is None:
        return None
    block, rows_per_program = 1024, 4
    blocks = -(-vocab // block)
    programs = max(1, min(LONG_PROGRAMS // blocks, -(-rows // rows_per_program)))
    partials_pV = raw_nV.new_empty(programs, vocab, dtype=torch.float32)
    kernels.gradient_kernel[(blocks, programs)](
        raw_nV, bias, targets_n, lse_n, partials_pV, rows, vocab, cap, scale, 2.0 * z_weight,
        R=rows_per_program, BLOCK=block, STAGES=1, num_warps=4, **common,
    )  # fmt: skip
    return partials_pV
