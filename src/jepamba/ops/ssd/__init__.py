"""The sequence operator: the SSD recurrence of Mamba-2 (Dao & Gu 2024, arXiv 2405.21060), in three implementations.

    h_t = exp(dt_t · A) · h_{t−1} + dt_t · x_t ⊗ B_t        (h_{t−1} is 0 if reset_t)
    y_t = h_t · C_t + D · x_t

`ssd_reference` is the recurrence in float64, the reference for the others. `ssd_torch` is plain PyTorch. `ssd_triton`
has the kernels for CUDA. All have one signature and the same tests.

Legend: B batch, T time, H heads, P head dimension, G groups (head h uses B and C of group h // (H / G)), N state.
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
    """Return the outputs y and the state after the last token.

    Decays and states are fp32, or fp64 for fp64 inputs. y has the dtype of x, the final state the dtype of the states.
    On a GPU, the Triton kernels compute the sizes that they support, and plain PyTorch all others.

    Arguments: `dt_BTH`: positive step sizes (after softplus); `A_H`: negative decay rates; `reset_BT`: a reset at t
    clears the state before t, including the initial state.
    """
    operator = ssd_torch
    if use_triton(x_BTHP):
        from jepamba.ops.ssd import triton as triton_ssd

        if triton_ssd.is_supported(x_BTHP.dtype, x_BTHP.shape[-1], B_BTGN.shape[-1], chunk_size):
            operator = triton_ssd.ssd_triton
    return operator(x_BTHP, dt_BTH, A_H, B_BTGN, C_BTGN, D_H, initial_state_BHPN, reset_BT, chunk_size=chunk_size)
