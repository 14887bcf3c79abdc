"""Quantizers to floating-point formats: FP8 with or without a scale per row, BF16, fp32.

Shapes: R rows of C values, as in `protocol`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from jepamba.quant.protocol import Streams, absmax_scale, divisor, rows

FP8_MAX = 448.0
"""Largest finite value of FP8 e4m3 (OCP 8-bit floating point specification, 2023)."""


@dataclass(frozen=True)
class Fp8Quantizer:
    """FP8 e4m3, with a BF16 scale per row (`scaled`) or without, which is coarse near 1 and underflows small values."""

    scaled: bool = True

    @property
    def name(self) -> str:
        """`fp8-row` or `fp8`."""
        return "fp8-row" if self.scaled else "fp8"

    def encode(self, w: Tensor) -> Streams:
        """Encode `w` (any shape) as `fp8` (R, C), raw bits in uint8, and, if `scaled`, `scale` (R,) in BF16."""
        w_RC = w.detach().float().reshape(rows(tuple(w.shape)))
        if not self.scaled:
            return {"fp8": w_RC.clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn).view(torch.uint8)}
        scale_R1 = absmax_scale(w_RC, FP8_MAX)
        unit_RC = (w_RC / divisor(scale_R1.float())).clamp(-FP8_MAX, FP8_MAX)
        return {"fp8": unit_RC.to(torch.float8_e4m3fn).view(torch.uint8), "scale": scale_R1.squeeze(1)}

    def decode(self, streams: Streams, shape: tuple[int, ...]) -> Tensor:
        """Decode the streams to the fp32 tensor of `shape`."""
        w_RC = streams["fp8"].view(torch.float8_e4m3fn).float()
        if self.scaled:
            w_RC = w_RC * streams["scale"].float().unsqueeze(1)
        return w_RC.reshape(shape)

    def streams(self, shape: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Return shape and dtype of each stream of a tensor of `shape`."""
        R, C = rows(shape)
        expected: dict[str, tuple[tuple[int, ...], torch.dtype]] = {"fp8": ((R, C), torch.uint8)}
        if self.scaled:
            expected["scale"] = ((R,), torch.bfloat16)
        return expected


@dataclass(frozen=True)
class FloatQuantizer:
    """A plain floating-point format: BF16 or fp32."""

    dtype: torch.dtype

    @property
    def name(self) -> str:
        """`bf16` or `fp32`."""
        return {torch.bfloat16: "bf16", torch.float32: "fp32"}[self.dtype]

    def encode(self, w: Tensor) -> Streams:
        """Encode `w` (any shape) as `value`, of the same shape."""
        return {"value": w.detach().to(self.dtype)}

    def decode(self, streams: Streams, shape: tuple[int, ...]) -> Tensor:
        """Decode the streams to the fp32 tensor of `shape`."""
        return streams["value"].float().reshape(shape)

    def streams(self, shape: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Return shape and dtype of each stream of a tensor of `shape`."""
        return {"value": (shape, self.dtype)}
