"""The integer quantizer: 2 to 8 bits per weight, with an absmax or clipped scale per row or per group of columns.

Shapes: a weight is viewed as R rows of C values. Each row has G groups of K columns (the last one padded with zeros),
each with one scale; N = R·G is the total number of groups. Without groups, G = 1 and K = C.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from jepamba.quant.protocol import Streams, absmax_scale, divisor, rows

Scale = Literal["absmax", "clip", "hessian"]

MIN_BITS, MAX_BITS = 2, 8
RATIOS = 8
"""Number of scales in the search: the absmax scale and 7 smaller ones."""
_SMALLEST_RATIO = {2: 0.3, 3: 0.45, 4: 0.55, 5: 0.7, 6: 0.8, 7: 0.9, 8: 0.9}
"""Smallest searched scale relative to absmax, by bits. For 90 % of normal rows of 64 to 2,560 values the best scale is
above it."""
_CHUNK_VALUES = {"cpu": 1 << 18, "cuda": 1 << 26}
"""Values per chunk of the search: small enough for a core's cache, large enough to fill a GPU."""


@dataclass(frozen=True)
class IntQuantizer:
    """Symmetric integers of `bits` bits with a BF16 scale s per group: w ≈ q · s, |q| ≤ q_max = 2^(bits−1) − 1.

    q is rounded with the stored scale, so q · s (at most 7 + 8 significant bits) is exact in fp32.

    Arguments:
        bits: 2 to 8.
        scale: `absmax`, s = largest magnitude of the group / q_max; `clip`, that scale times the ratio of least
            squared error, one of `RATIOS` (values beyond q_max · s are clipped); `hessian`, the same with the error of
            each column weighted by its importance.
        group: columns that share a scale; 0: the whole row.
    """

    bits: int
    scale: Scale = "absmax"
    group: int = 0

    @property
    def name(self) -> str:
        """For example `int4`, `int3-clip`, `int4-hessian-g64`."""
        clipped = "" if self.scale == "absmax" else f"-{self.scale}"
        return f"int{self.bits}{clipped}{f'-g{self.group}' if self.group else ''}"

    @property
    def q_max(self) -> int:
        """Largest stored integer."""
        return (1 << (self.bits - 1)) - 1

    def groups(self, columns: int) -> int:
        """Return G, the number of scales of a row of `columns` values."""
        return -(-columns // self.group) if self.group else 1

    def encode(self, w: Tensor, importance_C: Tensor | None = None) -> Streams:
        """Encode `w` (any shape) as `q` (R, C) int8 and `scale` BF16, (R,), or (R, G) with groups.

        Without `importance_C` all columns have equal weight. Quantized values are fixed points: the search starts at
        absmax, and only a smaller error replaces it.
        """
        R, C = rows(tuple(w.shape))
        w_NK = self._split(w.detach().float().reshape(R, C))
        scale_N1 = absmax_scale(w_NK, self.q_max)
        if self.scale != "absmax":
            scale_N1 = self._search_scales(w_NK, scale_N1, importance_C if self.scale == "hessian" else None)
        q_NK = (w_NK / divisor(scale_N1.float())).round_().clamp_(-self.q_max, self.q_max).to(torch.int8)
        q_RC = q_NK.reshape(R, -1)[:, :C].contiguous()
        return {"q": q_RC, "scale": scale_N1.reshape(self.streams(tuple(w.shape))["scale"][0])}

    def decode(self, streams: Streams, shape: tuple[int, ...]) -> Tensor:
        """Decode the streams to the fp32 tensor of `shape`."""
        R, C = rows(shape)
        w_NK = self._split(streams["q"]) * streams["scale"].float().reshape(-1, 1)
        return w_NK.reshape(R, -1)[:, :C].reshape(shape)

    def streams(self, shape: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Return shape and dtype of each stream of a tensor of `shape`."""
        R, C = rows(shape)
        scales = (R, self.groups(C)) if self.group else (R,)
        return {"q": ((R, C), torch.int8), "scale": (scales, torch.bfloat16)}

    def _split(self, w_RC: Tensor) -> Tensor:
        """Split the rows into groups (N, K); the last group of a row is padded with zeros."""
        C = w_RC.shape[1]
        if not self.group:
            return w_RC
        return F.pad(w_RC, (0, self.groups(C) * self.group - C)).reshape(-1, self.group)

    def _search_scales(self, w_NK: Tensor, absmax_N1: Tensor, importance_C: Tensor | None) -> Tensor:
        """Return the scale (N, 1) of least error for each group, computed in chunks of groups."""
        N, K = w_NK.shape
        step = max(1, _CHUNK_VALUES[w_NK.device.type] // K)
        roots: tuple[Tensor | None, ...] = (None,) * N
        if importance_C is not None:
            root_GK = self._split(importance_C.float().clamp_min(0).sqrt().unsqueeze(0))
            roots = root_GK.repeat(N // root_GK.shape[0], 1).split(step)
        chunks = zip(w_NK.split(step), absmax_N1.split(step), roots, strict=False)
        return torch.cat([self._search_chunk(*chunk) for chunk in chunks])

    def _search_chunk(self, w_NK: Tensor, absmax_N1: Tensor, root_NK: Tensor | None) -> Tensor:
        """Return the scale (N, 1) of least error, searched from the largest down.

        Errors are in units of the absmax step: squares of tiny weights would underflow.
        """
        unit_N1 = divisor(absmax_N1.float())
        u_NK = w_NK / unit_N1
        best_N1, least_N1 = absmax_N1, None
        for index in range(RATIOS):
            ratio = 1.0 - (1.0 - _SMALLEST_RATIO[self.bits]) * index / (RATIOS - 1)
            scale_N1 = absmax_N1 if index == 0 else (absmax_N1.float() * ratio).to(torch.bfloat16)
            step_N1 = divisor(scale_N1.float() / unit_N1)
            error_NK = (u_NK / step_N1).round_().clamp_(-self.q_max, self.q_max).mul_(step_N1).sub_(u_NK)
            if root_NK is not None:
                error_NK.mul_(root_NK)
            error_N1 = torch.linalg.vector_norm(error_NK, dim=1, keepdim=True)
            if least_N1 is None:
                least_N1 = error_N1
            else:
                best_N1 = torch.where(error_N1 < least_N1, scale_N1, best_N1)
                least_N1 = torch.minimum(error_N1, least_N1)
        return best_N1
