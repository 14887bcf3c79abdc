"""The one sequence operator: the state-space dual recurrence of Mamba-2 (Dao & Gu 2024), in three implementations.

    h_t = exp(dt_t · A) · h_{t−1} + dt_t · x_t ⊗ B_t        (h_{t−1} taken as 0 where reset_t)
    y_t = h_t · C_t + D · x_t

`ssd_reference` is the recurrence itself in float64, the truth that the others are compared with; `ssd_torch` is plain
PyTorch and the default; a fused Triton kernel serves CUDA. One signature, one set of tests.

Legend: B batch, T time, H heads, P head width, G groups (they share B and C; head h reads group h // (H / G)), N state.
"""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from jepamba.ops.dispatch import use_triton
from jepamba.ops.ssd.pytorch import ssd_torch
from jepamba.ops.ssd.reference import ssd_reference

__all__ = ["ssd", "ssd_reference", "ssd_torch"]


def ssd(
    x_BTHP: Float[Tensor, "B T H P"],
    dt_BTH: Float[Tensor, "B T H"],
    A_H: Float[Tensor, " H"],
    B_BTGN: Float[Tensor, "B T G N"],
    C_BTGN: Float[Tensor, "B T G N"],
    D_H: Float[Tensor, " H"],
    initial_state_BHPN: Float[Tensor, "B H P N"] | None = None,
    reset_BT: Bool[Tensor, "B T"] | None = None,
    *,
    chunk_size: int = 64,
) -> tuple[Float[Tensor, "B T H P"], Float[Tensor, "B H P N"]]:
    """Outputs y and the state after the last token.

    `dt` is positive (after softplus), `A` negative. A reset at t forgets everything before t, the initial state
    included. Decays and states are computed in fp32 or wider whatever x's dtype; y has x's dtype, the final state the
    wider one. On a GPU the Triton kernels serve the sizes that they take, and plain PyTorch all others.
    """
    operator = ssd_torch
    if use_triton(x_BTHP):
        from jepamba.ops.ssd import triton as triton_ssd

        if triton_ssd.takes(x_BTHP.dtype, x_BTHP.shape[-1], B_BTGN.shape[-1], chunk_size):
            operator = triton_ssd.ssd_triton
    return operator(x_BTHP, dt_BTH, A_H, B_BTGN, C_BTGN, D_H, initial_state_BHPN, reset_BT, chunk_size=chunk_size)
