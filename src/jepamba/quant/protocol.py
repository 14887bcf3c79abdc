"""What a quantizer is: the grid of values that a stored weight can take, as one object for training, export and load.

A quantizer turns a tensor into named integer streams (`encode`) and streams back into the tensor (`decode`).

Shapes: a weight is viewed as R rows of C values; a vector is one row. `w_RC` has the rows, `scale_R1` their scales.
"""

from __future__ import annotations

from math import prod
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

Streams = dict[str, Tensor]
"""The encoded form of one tensor: integer or raw-bit tensors by stream name."""


@runtime_checkable
class Quantizer(Protocol):
    """What training, export and load ask of a quantizer."""

    @property
    def name(self) -> str:
        """The name in an artifact's header, as `quantizer_named` reads it."""
        ...

    def encode(self, w: Tensor, importance_C: Tensor | None = None) -> Streams:
        """The streams of `w` (any shape, float). Deterministic; no gradient.

        `importance_C`, positive, says how much an error in each column matters; a quantizer may disregard it.
        """
        ...

    def decode(self, streams: Streams, shape: tuple[int, ...]) -> Tensor:
        """The fp32 tensor of `shape` that `streams` stand for, on their device."""
        ...

    def streams(self, shape: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of every stream of a tensor of `shape`: what a reader must find, and what it costs."""
        ...

    def stored_bits(self, shape: tuple[int, ...]) -> int:
        """Stored bits of a tensor of `shape` before any entropy coding, scales included."""
        ...


def rows(shape: tuple[int, ...]) -> tuple[int, int]:
    """(R, C) of a tensor of `shape` seen as a matrix: rows are the first dimension; a vector or scalar is one row."""
    if len(shape) < 2:
        return 1, prod(shape)
    return shape[0], prod(shape[1:])


def divisor(scale: Tensor) -> Tensor:
    """`scale` with 1 where it is 0: a row of zeros has scale 0, and any divisor gives it zeros."""
    return torch.where(scale > 0, scale, 1.0)
