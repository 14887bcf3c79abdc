"""Weight matrices packed for products with one vector: the stored integers or FP8 codes, with a scale per row.

Rows are stored in blocks of `BLOCK_ROWS`. For each column, the values of a block are adjacent 32-bit words, in vectors
of `LANES` words. Bits j·b to (j + 1)·b − 1 of a word are its plane j, one row. So a kernel keeps a block of outputs in
vector registers, reads the words once, in order, and multiplies each plane by one input.

Legend: R rows, K columns, B blocks, S words of a column of a block.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jepamba.quant import Fp8Quantizer, IntQuantizer, QuantWeight

LANES, PLANES = 8, 8
"""Words of a vector, and planes of the words of a block: eight sums of 256 bits, as many as AVX2 has room for."""
BLOCK_ROWS = LANES * PLANES
ABSENT, INT4, INT8, FP8, FLOAT = range(5)
"""Formats of a matrix. ABSENT: the model does not have it."""
FP8_INPUT_SCALE = 2.0**64
"""Factor of the inputs of FP8 codes, which a kernel reads as 2⁻¹²⁰ of their value: no product is a subnormal number."""
BITS = {INT4: 4, INT8: 8, FP8: 8, FLOAT: 32}


class PackedMatrix(NamedTuple):
    """A matrix W, padded with zero rows to whole blocks: W x = scale · (codes x) − offset · Σx, for each row."""

    kind: int
    words_BKS: NDArray[np.int32]
    scale_R: NDArray[np.float32]
    offset_R: NDArray[np.float32]
    sum_R: NDArray[np.float32]
    """Sum of each row of W, of a matrix with an offset."""


def pack(weight: QuantWeight) -> PackedMatrix:
    """Pack the effective weight (R, K).

    Integers and scaled FP8 stay as they are stored. Other weights, and weights that these formats do not represent
    exactly, are packed as fp32.
    """
    value, quantizer = weight.effective_weight().detach().cpu(), weight.quantizer
    if not (isinstance(quantizer, IntQuantizer) or (isinstance(quantizer, Fp8Quantizer) and quantizer.scaled)):
        return pack_float(value)
    streams = quantizer.encode(value)
    if not torch.equal(quantizer.decode(streams, tuple(value.shape)), value):
        return pack_float(value)
    scale_R = streams["scale"].float().numpy()
    if isinstance(quantizer, Fp8Quantizer):
        # A kernel reads the 7 bits below the sign as exponent and mantissa of fp32, whose bias is 120 more.
        return _packed(FP8, streams["fp8"].numpy(), scale_R * np.float32(2.0**120 / FP8_INPUT_SCALE))
    return _packed(INT4 if quantizer.bits <= 4 else INT8, streams["q"].numpy(), scale_R, quantizer.q_max + 1)


def pack_float(value: Tensor) -> PackedMatrix:
    """Pack `value` (R, K) as fp32."""
    codes_RK = value.contiguous().view(torch.int32).numpy()
    return _packed(FLOAT, codes_RK, np.ones(len(codes_RK), np.float32))


def _packed(kind: int, codes_RK: NDArray[np.generic], scale_R: NDArray[np.float32], offset: int = 0) -> PackedMatrix:
    bits, (R, K) = BITS[kind], codes_RK.shape
    padded = -(-R // BLOCK_ROWS) * BLOCK_ROWS
    codes_PK = np.zeros((padded, K), np.int32)
    codes_PK[:R] = codes_RK
    scale_P = np.zeros(padded, np.float32)
    scale_P[:R] = scale_R
    offset_P, sum_P = np.zeros((2, padded), np.float32)
    per_word = 32 // bits
    if kind == INT4:
        # Plane j is masked, not shifted: 16^j times the integer + offset ≥ 0. The top plane is shifted, with its sign.
        sum_P = scale_P * codes_PK.sum(1, dtype=np.int64).astype(np.float32)
        planes = np.arange(padded) // LANES % per_word
        low = planes < per_word - 1
        codes_PK[low] += offset
        offset_P = np.where(low, offset * scale_P, 0).astype(np.float32)
        scale_P *= np.where(low, 16.0**-planes, 1).astype(np.float32)
    fields = codes_PK.view(np.uint32).reshape(-1, PLANES // per_word, per_word, LANES, K) & np.uint32((1 << bits) - 1)
    words = np.zeros((padded // BLOCK_ROWS, PLANES // per_word, LANES, K), np.uint32)
    for plane in range(per_word):
        words |= fields[:, :, plane] << np.uint32(bits * plane)
    words_BKS = np.ascontiguousarray(words.reshape(len(words), -1, K).transpose(0, 2, 1)).view(np.int32)
    return PackedMatrix(kind, words_BKS, scale_P, offset_P, sum_P)
