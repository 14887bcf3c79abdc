"""Losses of rows of raw logits and their gradients on a CPU, in one C++ kernel (`kernels.cpp`).

Legend: n rows (tokens), V vocabulary, K blocks of rows.
"""

from __future__ import annotations

import ctypes

from torch import Tensor

from jepamba.ops.cpp import DTYPES, LANES, kernels_of, pointer, use_cpp
from jepamba.ops.cross_entropy.pytorch import RowLosses

_BLOCK = 16
"""As in the kernel."""


def _kernels() -> ctypes.CDLL | None:
    return kernels_of("cross_entropy")


def is_supported(raw_nV: Tensor) -> bool:
    """Whether the kernel supports this dtype, device and vocabulary, and could be compiled."""
    fits = raw_nV.shape[1] % LANES == 0 and raw_nV.is_contiguous()
    return use_cpp(raw_nV) and fits and _kernels() is not None


def row_losses_cpp(
    raw_nV: Tensor, bias_V: Tensor, targets_n: Tensor, kind: str, cap: float, *, z_weight: float, scale: float
) -> RowLosses:
    """`row_losses` with gradients, which replace the logits. Operations are fp32."""
    rows, vocab = raw_nV.shape
    ce_n, lse_n = bias_V.new_empty(2, rows).unbind()
    # Partial sums over blocks of rows do not depend on the number of threads.
    dbias_KV = bias_V.new_empty(-(-rows // _BLOCK), vocab)
    getattr(_kernels(), f"row_losses_{kind.upper()}_{DTYPES[raw_nV.dtype]}")(
        *map(ctypes.c_int64, (rows, vocab)),
        *map(ctypes.c_float, (cap, z_weight, scale)),
        *map(pointer, (raw_nV, bias_V, targets_n, ce_n, lse_n, dbias_KV)),
    )
    return RowLosses(ce_n, lse_n, raw_nV, dbias_KV.sum(0))
