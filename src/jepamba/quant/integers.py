"""The integer quantizer: 2 to 8 bits per weight, with a scale per row.

Shapes: R rows of C values, as in `protocol`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from jepamba.quant.protocol import Streams, absmax_scale, divisor, rows

MIN_BITS, MAX_BITS = 2, 8


@dataclass(frozen=True)
class IntQuantizer:
    """Symmetric integers of `bits` bits with a BF16 scale per row, s = largest magnitude / q_max: w ≈ q · s,
    |q| ≤ q_max = 2^(bits−1) − 1.

    q is rounded with the stored scale, so q · s (at most 7 + 8 significant bits) is exact in fp32.

    Arguments: `bits`: 2 to 8.
    """

    bits: int

    @property
    def name(self) -> str:
        """For example `int4`."""
        return f"int{self.bits}"

    @property
    def q_max(self) -> int:
        """Largest stored integer."""
        return (1 << (self.bits - 1)) - 1

    def encode(self, w: Tensor) -> Streams:
        """Encode `w` (any shape) as `q` (R, C) int8 and `scale` (R,) BF16. Quantized values are fixed points."""
        w_RC = w.detach().float().reshape(rows(tuple(w.shape)))
        scale_R1 = absmax_scale(w_RC, self.q_max)
        q_RC = (w_RC / divisor(scale_R1.float())).round_().clamp_(-self.q_max, self.q_max)
        return {"q": q_RC.to(torch.int8), "scale": scale_R1.squeeze(1)}

    def decode(self, streams: Streams, shape: tuple[int, ...]) -> Tensor:
        """Decode the streams to the fp32 tensor of `shape`."""
        return (streams["q"] * streams["scale"].float().unsqueeze(1)).reshape(shape)

    def streams(self, shape: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Return shape and dtype of each stream of a tensor of `shape`."""
        R, C = rows(shape)
        return {"q": ((R, C), torch.int8), "scale": ((R,), torch.bfloat16)}
