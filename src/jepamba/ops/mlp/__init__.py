"""The MLP with squared ReLU and its residual addition, with the row-wise work inside the matrix products on a GPU.

Legend: D model width, M hidden width.
"""

from __future__ import annotations

import os

from jaxtyping import Float
from torch import Tensor

from jepamba.ops.dispatch import use_triton

ENABLED = os.environ.get("JEPAMBA_FUSED_MLP") == "1"
"""Until it has been measured on a GPU, the separate kernels are the default."""


def fuses_mlp(x: Float[Tensor, "*batch D"], up_MD: Float[Tensor, "M D"], down_DM: Float[Tensor, "D M"]) -> bool:
    """Whether `mlp_residual` supports these tensors: of two bytes a value, whose tiles fit into the shared memory, and
    with rows of a multiple of 16 bytes, as TMA needs."""
    return (
        ENABLED
        and use_triton(x)
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
