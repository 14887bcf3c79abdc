"""Grids: the sets of values that a stored weight can take. One object serves training, export and load.

A grid turns a tensor into named integer streams (`encode`), turns streams back into the tensor (`decode`), and shows a
training step exactly what will be stored (`fake`, which is `decode(encode(w))` with a straight-through gradient). What
training sees is therefore what the artifact holds, to the bit.

Shapes: a weight is viewed as R rows of C values; a vector is one row. `w_RC` has the rows, `scale_R1` their scales.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

Streams = dict[str, Tensor]
"""The encoded form of one tensor: integer or raw-bit tensors by stream name."""

FP8_MAX = 448.0
"""Largest finite value of FP8 e4m3 (OCP 8-bit floating point specification, 2023)."""


@runtime_checkable
class Grid(Protocol):
    """What training, export and load ask of a grid."""

    @property
    def name(self) -> str:
        """The name in an artifact's header, as `grid_named` reads it."""
        ...

    def encode(self, w: Tensor) -> Streams:
        """The streams of `w` (any shape, float). Deterministic; no gradient."""
        ...

    def decode(self, streams: Streams, shape: tuple[int, ...]) -> Tensor:
        """The fp32 tensor of `shape` that `streams` stand for, on their device."""
        ...

    def streams(self, shape: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of every stream of a tensor of `shape`: what a reader must find, and what it costs."""
        ...

    def bits(self, shape: tuple[int, ...]) -> int:
        """Stored bits of a tensor of `shape` before any entropy coding, scales included."""
        ...


def rows(shape: tuple[int, ...]) -> tuple[int, int]:
    """(R, C) of a tensor of `shape` seen as a matrix: rows are the first dimension; a vector or scalar is one row."""
    total = 1
    for size in shape:
        total *= size
    if len(shape) < 2:
        return 1, total
    return shape[0], total // max(shape[0], 1)


def _absmax(w: Tensor) -> Tensor:
    return w.reshape(rows(tuple(w.shape))).abs().amax(dim=1, keepdim=True)


@dataclass(frozen=True)
class IntGrid:
    """Symmetric integers of `width` bits with one BF16 scale per row: w ≈ q · s, |q| <= 2^(width−1) − 1.

    s is absmax / q_max rounded to BF16, and q is rounded against that very s, so that q · s (at most 5 + 8 significant
    bits) is exact in fp32 and nothing is rounded twice.
    """

    width: int

    @property
    def name(self) -> str:
        """`int4`, `int5` or `int6`."""
        return f"int{self.width}"

    @property
    def limit(self) -> int:
        """The largest stored integer."""
        return (1 << (self.width - 1)) - 1

    def encode(self, w: Tensor) -> Streams:
        """The streams of `w`, any shape: `q` (R, C) int8 and `scale` (R,) BF16."""
        w_RC = w.detach().float().reshape(rows(tuple(w.shape)))
        scale_R1 = (_absmax(w_RC) / self.limit).to(torch.bfloat16)
        step_R1 = scale_R1.float()
        # A row of zeros has scale 0; any divisor gives its q = 0.
        q_RC = (w_RC / torch.where(step_R1 > 0, step_R1, 1.0)).round().clamp(-self.limit, self.limit)
        return {"q": q_RC.to(torch.int8), "scale": scale_R1.squeeze(1)}

    def decode(self, streams: Streams, shape: tuple[int, ...]) -> Tensor:
        """The fp32 tensor of `shape` that the streams stand for."""
        return (streams["q"].float() * streams["scale"].float().unsqueeze(1)).reshape(shape)

    def streams(self, shape: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of each stream of a tensor of `shape`."""
        R, C = rows(shape)
        return {"q": ((R, C), torch.int8), "scale": ((R,), torch.bfloat16)}

    def bits(self, shape: tuple[int, ...]) -> int:
        """Stored bits of a tensor of `shape`, scales included, before entropy coding."""
        R, C = rows(shape)
        return R * C * self.width + R * 16


@dataclass(frozen=True)
class Fp8Grid:
    """FP8 e4m3, with one BF16 scale per row (`scaled`) or as it is, which is coarse near 1 and loses small values."""

    scaled: bool = True

    @property
    def name(self) -> str:
        """`fp8-row` or `fp8`."""
        return "fp8-row" if self.scaled else "fp8"

    def encode(self, w: Tensor) -> Streams:
        """The streams of `w`, any shape: `fp8` (R, C), the raw bits as uint8, and with `scaled` `scale` (R,) BF16."""
        w_RC = w.detach().float().reshape(rows(tuple(w.shape)))
        if not self.scaled:
            return {"fp8": w_RC.clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn).view(torch.uint8)}
        scale_R1 = (_absmax(w_RC) / FP8_MAX).to(torch.bfloat16)
        step_R1 = scale_R1.float()
        unit_RC = (w_RC / torch.where(step_R1 > 0, step_R1, 1.0)).clamp(-FP8_MAX, FP8_MAX)
        return {"fp8": unit_RC.to(torch.float8_e4m3fn).view(torch.uint8), "scale": scale_R1.squeeze(1)}

    def decode(self, streams: Streams, shape: tuple[int, ...]) -> Tensor:
        """The fp32 tensor of `shape` that the streams stand for."""
        w_RC = streams["fp8"].view(torch.float8_e4m3fn).float()
        if self.scaled:
            w_RC = w_RC * streams["scale"].float().unsqueeze(1)
        return w_RC.reshape(shape)

    def streams(self, shape: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of each stream of a tensor of `shape`."""
        R, C = rows(shape)
        expected: dict[str, tuple[tuple[int, ...], torch.dtype]] = {"fp8": ((R, C), torch.uint8)}
        if self.scaled:
            expected["scale"] = ((R,), torch.bfloat16)
        return expected

    def bits(self, shape: tuple[int, ...]) -> int:
        """Stored bits of a tensor of `shape`, scales included, before entropy coding."""
        R, C = rows(shape)
        return R * C * 8 + (R * 16 if self.scaled else 0)


@dataclass(frozen=True)
class FloatGrid:
    """A plain floating-point format: BF16 or fp32."""

    dtype: torch.dtype

    @property
    def name(self) -> str:
        """`bf16` or `fp32`."""
        return {torch.bfloat16: "bf16", torch.float32: "fp32"}[self.dtype]

    def encode(self, w: Tensor) -> Streams:
        """The streams of `w`, any shape: `value`, of the tensor's own shape."""
        return {"value": w.detach().to(self.dtype)}

    def decode(self, streams: Streams, shape: tuple[int, ...]) -> Tensor:
        """The fp32 tensor of `shape` that the streams stand for."""
        return streams["value"].float().reshape(shape)

    def streams(self, shape: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of each stream of a tensor of `shape`."""
        return {"value": (shape, self.dtype)}

    def bits(self, shape: tuple[int, ...]) -> int:
        """Stored bits of a tensor of `shape`, scales included, before entropy coding."""
        R, C = rows(shape)
        return R * C * (16 if self.dtype == torch.bfloat16 else 32)


def grid_named(name: str) -> Grid:
    """The grid with this `name`, as written in an artifact's header. Raises `KeyError` for an unknown name."""
    grids: dict[str, Grid] = {
        "int4": IntGrid(4),
        "int5": IntGrid(5),
        "int6": IntGrid(6),
        "fp8-row": Fp8Grid(True),
        "fp8": Fp8Grid(False),
        "bf16": FloatGrid(torch.bfloat16),
        "fp32": FloatGrid(torch.float32),
    }
    return grids[name]


class _StraightThrough(torch.autograd.Function):
    """Value of the grid's nearest point, gradient of the identity (Bengio et al. 2013)."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, grid: Grid) -> Tensor:
        return grid.decode(grid.encode(w), tuple(w.shape))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0], None


def fake(w: Tensor, grid: Grid) -> Tensor:
    """`w` as it will be stored and loaded, in fp32, differentiable as if nothing had been rounded."""
    return cast(Tensor, _StraightThrough.apply(w, grid))  # type: ignore[no-untyped-call]
