"""The MLP with its residual addition as an autograd function over Triton kernels and two plain products.

Legend: N tokens, D model width, M hidden width, S tiles in a row of M.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable
from triton.tools.tensor_descriptor import TensorDescriptor

from jepamba.ops.dispatch import on_device
from jepamba.ops.linear.products import product_fp32
from jepamba.ops.linear.triton import scale_and_pad, scale_and_pad_gradient
from jepamba.ops.mlp.triton_kernels import (
    add_scaled_kernel,
    down_gradient_kernel,
    scale_gradient_kernel,
    up_kernel,
)
from jepamba.ops.norms import RMS_EPS
from jepamba.ops.norms.triton import row_settings


@dataclasses.dataclass(frozen=True)
class Tile:
    """Launch settings of a product: a tile of `rows` × `columns`, in steps of `depth`."""

    rows: int = 128
    columns: int = 256
    depth: int = 64
    num_warps: int = 8
    stages: int = 3
    specialize: bool = False

    def settings(self, device: torch.device) -> dict[str, Any]:
        """Return the arguments of the kernel. There is one program for each multiprocessor."""
        cuda = device.type == "cuda"
        programs = torch.cuda.get_device_properties(device).multi_processor_count if cuda else 2
        return {
            "R": self.rows, "C": self.columns, "K": self.depth, "PROGRAMS": programs, "STAGES": self.stages,
            "SPECIALIZE": self.specialize, "num_warps": self.num_warps,
        }  # fmt: skip


UP, DOWN_GRADIENT = Tile(), Tile()
"""In bf16, with half a tile of the squared values and half a tile of the result, they fill the shared memory."""


def up_product(x_ND: Tensor, up_MD: Tensor, tile: Tile) -> tuple[Tensor, Tensor]:
    """Return (a (N, M) = relu(x upᵀ)², Σ a² of each tile (N, S) in fp32)."""
    (N, D), M = x_ND.shape, len(up_MD)
    a_NM = x_ND.new_empty(N, M)
    squares_NS = x_ND.new_empty(N, -(-M // tile.columns), dtype=torch.float32)
    with on_device(x_ND):
        settings = tile.settings(x_ND.device)
        up_kernel[(settings["PROGRAMS"],)](
            TensorDescriptor.from_tensor(x_ND, [tile.rows, tile.depth]),
            TensorDescriptor.from_tensor(up_MD, [tile.columns, tile.depth]),
            TensorDescriptor.from_tensor(a_NM, [tile.rows, tile.columns // 2]),
            squares_NS, N, D, M, **settings,
        )  # fmt: skip
    return a_NM, squares_NS


def down_gradient(e_ND: Tensor, down_DM: Tensor, a_NM: Tensor, c_N: Tensor, tile: Tile) -> Tensor:
    """Return 2·√a·(e down − c·a), the gradient (N, M) of up x."""
    (N, D), M = e_ND.shape, down_DM.shape[1]
    du_NM = torch.empty_like(a_NM)
    with on_device(e_ND):
        settings = tile.settings(e_ND.device)
        down_gradient_kernel[(settings["PROGRAMS"],)](
            TensorDescriptor.from_tensor(e_ND, [tile.rows, tile.depth]),
            TensorDescriptor.from_tensor(down_DM, [tile.depth, tile.columns]),
            TensorDescriptor.from_tensor(a_NM, [tile.rows, tile.columns // 2]),
            c_N,
            TensorDescriptor.from_tensor(du_NM, [tile.rows, tile.columns // 2]),
            N, D, M, **settings,
        )  # fmt: skip
    return du_NM


class MlpResidual(torch.autograd.Function):
    """See `mlp.mlp_residual`."""

    @staticmethod
    def forward(ctx: Any, residual: Tensor, x: Tensor, up_MD: Tensor, down_DM: Tensor, scale_D: Tensor) -> Tensor:
        residual, up_MD, down_DM, scale_D = (v.contiguous() for v in (residual, up_MD, down_DM, scale_D))
        x_ND = x.reshape(-1, x.shape[-1]).contiguous()
        scaled_DM = scale_and_pad(down_DM, scale_D, len(down_DM))
        a_NM, squares_NS = up_product(x_ND, up_MD, UP)
        p_ND = a_NM @ scaled_DM.t()
        N, settings = row_settings(p_ND)
        out, r_N = torch.empty_like(residual), squares_NS.new_empty(N)
        S = squares_NS.shape[1]
        with on_device(x):
            add_scaled_kernel[(N,)](
                residual, p_ND, squares_NS, out, r_N, RMS_EPS,
                M=len(up_MD), S=S, SPAN=triton.next_power_of_2(S), **settings,
            )  # fmt: skip
        ctx.save_for_backward(x_ND, up_MD, down_DM, scale_D, scaled_DM, a_NM, p_ND, r_N)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        x_ND, up_MD, down_DM, scale_D, scaled_DM, a_NM, p_ND, r_N = ctx.saved_tensors
        dout = grads[0].contiguous()
        N, settings = row_settings(p_ND)
        e_ND, c_N = torch.empty_like(p_ND), torch.empty_like(r_N)
        with on_device(p_ND):
            scale_gradient_kernel[(N,)](dout, p_ND, r_N, e_ND, c_N, M=len(up_MD), **settings)
        du_NM = down_gradient(e_ND, scaled_DM, a_NM, c_N, DOWN_GRADIENT)
        dscaled_DM = product_fp32(e_ND.t(), a_NM)
        ddown_DM, dscale_D = scale_and_pad_gradient(down_DM, scale_D, dscaled_DM)
        dup_MD = product_fp32(du_NM.t(), x_ND)
        return dout, (du_NM @ up_MD).view(dout.shape), dup_MD, ddown_DM, dscale_D.to(scale_D.dtype)
