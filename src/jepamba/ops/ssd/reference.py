"""The recurrence, one token at a time, in float64: the reference for all other implementations.

Legend: B batch, T time, H heads, P head dimension, G groups, N state.
"""

from __future__ import annotations

import torch
from torch import Tensor


def ssd_reference(
    x_BTHP: Tensor,
    dt_BTH: Tensor,
    A_H: Tensor,
    B_BTGN: Tensor,
    C_BTGN: Tensor,
    D_H: Tensor,
    initial_state_BHPN: Tensor | None = None,
    reset_BT: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return (y_BTHP, final_state_BHPN) in float64 from the equations in `jepamba.ops.ssd`. Differentiable."""
    x, dt, A, D = x_BTHP.double(), dt_BTH.double(), A_H.double(), D_H.double()
    heads = x.shape[2] // B_BTGN.shape[2]
    B = B_BTGN.double().repeat_interleave(heads, dim=2)
    C = C_BTGN.double().repeat_interleave(heads, dim=2)
    shape = (x.shape[0], x.shape[2], x.shape[3], B.shape[3])
    state = x.new_zeros(shape) if initial_state_BHPN is None else initial_state_BHPN.double()
    outputs = []
    for t in range(x.shape[1]):
        if reset_BT is not None:
            state = torch.where(reset_BT[:, t, None, None, None], torch.zeros_like(state), state)
        decay_BH = torch.exp(dt[:, t] * A)
        update_BHPN = dt[:, t, :, None, None] * x[:, t, :, :, None] * B[:, t, :, None, :]
        state = decay_BH[:, :, None, None] * state + update_BHPN
        outputs.append((state * C[:, t, :, None, :]).sum(-1) + D[:, None] * x[:, t])
    return torch.stack(outputs, dim=1), state
