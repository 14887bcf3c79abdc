"""The MLP with squared ReLU and its residual addition, with the row-wise work inside the matrix products on a GPU.

Legend: D model width, M hidden width.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from jepamba.ops.dispatch import large_tiles_fit, use_triton


def fuses_mlp(x: Float[Tensor, "*batch D"], up_MD: Float[Tensor, "M D"], down_DM: Float[Tensor, "D M"]) -> bool:
    """Whether `mlp_residual` supports these tensors: of two bytes a value, with rows of a multiple of 16 bytes, as TMA
    needs, on a GPU with at least the shared memory of an H100, which the tiles fill (measured on an H200 only)."""
    return (
        use_triton(x)
        and large_tiles_fit()
        and x.element_size() == 2
        and x.dtype == up_MD.dtype == down_DM.dtype
        and up_MD.shape[0] % 8 == 0
        and up_MD.shape[1] % 8 == 0
    )


def mlp_residual(
    residual: Float[Tensor, "*batch D"],
    x: Float[Tensor, "*batch D"],
    up_MD: Float[Tensor, "M D"],
    down_DM: Float[Tensor, "D M"],
    scale_D: Float[Tensor, " D"],
) -> Float[Tensor, "*batch D"]:
    """Return residual + scale · down(rms(relu(up x)²)). The gradients of the two matrices are fp32."""
    from jepamba.ops.mlp.triton import MlpResidual

    out: Tensor = MlpResidual.apply(residual, x, up_MD, down_DM, scale_D)  # type: ignore[no-untyped-call]
    return out
