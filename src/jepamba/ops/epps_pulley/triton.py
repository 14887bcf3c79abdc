"""The forward and backward passes of the Epps–Pulley statistic with Triton kernels.

Legend: S samples, N values of a sample, M directions, K knots.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jepamba.ops.dispatch import on_device
from jepamba.ops.epps_pulley import triton_kernels as kernels

SUMS = {"BLOCK_N": 8, "BLOCK_M": 32, "num_warps": 4}

GRADIENT = {"BLOCK_N": 32, "BLOCK_M": 64, "num_warps": 4}
"""Tile sizes and warps of each kernel."""

PROGRAMS = 4096
"""Approximate number of programs, if each has at least `ROWS` values."""

ROWS = 256


def sums_triton(x_SNM: Tensor, t_K: Tensor) -> Tensor:
    """`sums_torch` with the kernel, which reads x once."""
    samples, num_values, directions = x_SNM.shape
    blocks = -(-directions // SUMS["BLOCK_M"])
    rows = max(ROWS, -(-num_values * samples * blocks // PROGRAMS))
    num_partials = -(-num_values // rows)
    sums = torch.empty(num_partials, samples, len(t_K), 2, directions, device=x_SNM.device)
    with on_device(x_SNM):
        kernels.sums_kernel[(blocks, num_partials, samples)](
            x_SNM.contiguous(), t_K.contiguous(), sums, num_values, directions, rows, K=len(t_K), **SUMS
        )
    return sums.sum(0)


def gradient_triton(x_SNM: Tensor, t_K: Tensor, a_KSM: Tensor, b_KSM: Tensor) -> Tensor:
    """`gradient_torch` with the kernel, which reads x once and writes the result once."""
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
