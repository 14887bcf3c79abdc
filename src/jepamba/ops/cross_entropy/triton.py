"""Losses of rows of raw logits, and their gradient, by Triton kernels.

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


def token_nats_triton(
    logits_nV: Float[Tensor, "n V"], targets_n: Int[Tensor, " n"], temperature: float
) -> Float[Tensor, " n"]:
    """`token_nats` by the kernels; contiguous logits."""
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
    """Fill ce and lse and, with a `scale`, put the gradient into `raw` and return parts of its column sums."""
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
