"""The two passes of the Epps–Pulley statistic over the sample, by Triton kernels.

Legend: S samples, N values of a sample, M directions, K knots.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jepamba.ops.dispatch import on_device
from jepamba.ops.epps_pulley import triton_kernels as kernels

SUMS = {"BLOCK_N": 8, "BLOCK_M": 32, "num_warps": 4}

GRADIENT = {"BLOCK_N": 32, "BLOCK_M": 64, "num_warps": 4}
"""Tiles of a program of each kernel, and its warps."""

PROGRAMS = 4096
"""Programs that share the values are about as many, as long as each has `ROWS` of them."""

ROWS = 256


def sums_triton(x_SNM: Tensor, t_K: Tensor) -> Tensor:
    """`sums_torch` by the kernel: x is read once."""
    samples, num_values, directions = x_SNM.shape
    blocks = -(-directions // SUMS["BLOCK_M"])
    rows = max(ROWS, -(-num_values * samples * blocks // PROGRAMS))
    parts = -(-num_values // rows)
    sums = torch.empty(parts, samples, len(t_K), 2, directions, device=x_SNM.device)
    with on_device(x_SNM):
        kernels.sums_kernel[(blocks, parts, samples)](
            x_SNM.contiguous(), t_K.contiguous(), sums, num_values, directions, rows, K=len(t_K), **SUMS
        )
    return sums.sum(0)


def gradient_triton(x_SNM: Tensor, t_K: Tensor, a_KSM: Tensor, b_KSM: Tensor) -> Tensor:
    """`gradient_torch` by the kernel: x is read once and the result written once."""
    samples, num_values, directions = x_SNM.shape
    x_SNM = x_SNM.contiguous()
    result = torch.empty_like(x_SNM)
    grid = (-(-directions // GRADIENT["BLOCK_M"]), -(-num_values // GRADIENT["BLOCK_N"]), samples)
    with on_device(x_SNM):
        kernels.gradient_kernel[grid](
            x_SNM, t_K.contiguous(), a_KSM.contiguous(), b_KSM.contiguous(), result,
            num_values, directions, samples, len(t_K), **GRADIENT,
        )  # fmt: skip
    return result
