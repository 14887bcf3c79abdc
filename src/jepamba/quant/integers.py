"""The integer quantizer: 2 to 8 bits per weight, with a scale per row or per group of columns.

Shapes: a weight is viewed as R rows of C values. Each row has G groups of K columns (the last one padded with zeros),
each with one scale; N = R·G is the total number of groups. Without groups, G = 1 and K = C.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from jepamba.quant.protocol import Streams, absmax_scale, divisor, rows

MIN_BITS, MAX_BITS = 2, 8


@dataclass(frozen=True)
class IntQuantizer:
    """Symmetric integers of `bits` bits with a BF16 scale per group, s = largest magnitude / q_max: w ≈ q · s,
    |q| ≤ q_max = 2^(bits−1) − 1.

    q is rounded with the stored scale, so q · s (at most 7 + 8 significant bits) is exact in fp32.

    Arguments:
        bits: 2 to 8.
        group: columns that share a scale; 0: the whole row.
    """

    bits: int
    group: int = 0

    @property
    def name(self) -> str:
        """For example `int4`, `int4-g64`."""
        return f"int{self.bits}{f'-g{self.group}' if self.group else ''}"

    @property
    def q_max(self) -> int:
        """Largest stored integer."""
        return (1 << (self.bits - 1)) - 1

    def groups(self, columns: int) -> int:
        """Return G, the number of scales of a row of `columns` values."""
        return -(-columns // self.group) if self.group else 1

    def encode(self, w: Tensor) -> Streams:
        """Encode `w` (any shape) as `q` (R, C) int8 and `scale` BF16, (R,), or (R, G) with groups.

        Quantized values are fixed points.
        """
        R, C = rows(tuple(w.shape))
        w_NK = self._split(w.detach().float().reshape(R, C))
        scale_N1 = absmax_scale(w_NK, self.q_max)
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
