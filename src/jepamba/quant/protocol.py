"""The protocol of quantizers: one object for training, export and load.

A quantizer encodes a tensor as named integer streams (`encode`) and decodes the streams to a tensor (`decode`).

Shapes: a weight is viewed as R rows of C values; a vector is one row. `w_RC` has the rows, `scale_R1` their scales.
"""

from __future__ import annotations

from math import prod
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

Streams = dict[str, Tensor]
"""Encoded form of one tensor: integer or raw-bit tensors by stream name."""


@runtime_checkable
class Quantizer(Protocol):
    """Encode and decode weights for training, export and load."""

    @property
    def name(self) -> str:
        """Name in an artifact's header; `quantizer_named` parses it."""
        ...

    def encode(self, w: Tensor) -> Streams:
        """Encode `w` (any shape, float) as streams, deterministically and without gradient."""
        ...

    def decode(self, streams: Streams, shape: tuple[int, ...]) -> Tensor:
        """Decode `streams` to the fp32 tensor of `shape`, on their device."""
        ...

    def streams(self, shape: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Return shape and dtype of each stream of a tensor of `shape`; readers check streams against it."""
        ...


def rows(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return (R, C) of `shape` as a matrix: the first dimension has the rows; a vector or scalar is one row."""
    if len(shape) < 2:
        return 1, prod(shape)
    return shape[0], prod(shape[1:])


def divisor(scale: Tensor) -> Tensor:
    """Return `scale` with 1 in place of 0, the scale of a row of zeros."""
    return torch.where(scale > 0, scale, 1.0)


def absmax_scale(w_RC: Tensor, largest: float) -> Tensor:
    """Return the largest magnitude of each row / `largest`, in BF16 (R, 1), the same on every device.

    It divides by a tensor, because on a GPU PyTorch replaces division by a number by a product with its reciprocal.
    """
    absmax_R1 = w_RC.abs().amax(dim=1, keepdim=True)
    return (absmax_R1 / torch.full_like(absmax_R1, largest)).to(torch.bfloat16)
