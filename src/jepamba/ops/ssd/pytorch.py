"""The operator in plain PyTorch: matrix products inside each chunk, and a recurrence between chunks.

This is the chunked algorithm of Dao & Gu 2024 (arXiv 2405.21060), section 6. Within a chunk, token i reads token j <= i
with weight C_i·B_j · exp(a_{j+1} + … + a_i) · dt_j, where a = dt·A. Each token also reads the state at the chunk start.
A reset is a decay of exactly 0: earlier tokens are masked, not multiplied by a small number.

Legend: B batch, c chunks, L chunk length, H heads (K heads of each of G groups, H = G·K), P head dimension, N state.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def ssd_torch(
    x_BTHP: Tensor,
    dt_BTH: Tensor,
    A_H: Tensor,
    B_BTGN: Tensor,
    C_BTGN: Tensor,
    D_H: Tensor,
    initial_state_BHPN: Tensor | None = None,
    reset_BT: Tensor | None = None,
    *,
    chunk_size: int = 64,
) -> tuple[Tensor, Tensor]:
    """Return (y_BTHP, final_state_BHPN); see `jepamba.ops.ssd.ssd`. Differentiable in every float input.

    Time and memory are O(T·L) per head. L = `chunk_size` changes the result only by rounding.
    """
    batch, length, heads, headdim = x_BTHP.shape
    groups, n = B_BTGN.shape[2:]
    per_group = heads // groups
    compute_dtype = torch.promote_types(x_BTHP.dtype, torch.float32)
    L = min(chunk_size, length)
    pad = -length % L
    dt_BTH = dt_BTH.to(compute_dtype)
    # Padding tokens have dt = 0, so they do not change the state, and the final state is the state after token T.
    x_BcLGKP = F.pad(x_BTHP, (0, 0, 0, 0, 0, pad)).reshape(batch, -1, L, groups, per_group, headdim).to(compute_dtype)
    dt_BcLGK = F.pad(dt_BTH, (0, 0, 0, pad)).reshape(batch, -1, L, groups, per_group)
    B_BcGLN = F.pad(B_BTGN, (0, 0, 0, 0, 0, pad)).reshape(batch, -1, L, groups, n).transpose(2, 3).to(compute_dtype)
    C_BcGLN = F.pad(C_BTGN, (0, 0, 0, 0, 0, pad)).reshape(batch, -1, L, groups, n).transpose(2, 3).to(compute_dtype)

    # total[i] = a_1 + … + a_i within the chunk, so the decay from j to i is exp(total[i] − total[j]).
    total_BcGKL = (dt_BcLGK * A_H.to(compute_dtype).view(groups, per_group)).cumsum(2).movedim(2, 4)
    decay_BcGKLL = total_BcGKL.unsqueeze(-1) - total_BcGKL.unsqueeze(-2)
    visible = torch.ones(L, L, dtype=torch.bool, device=x_BTHP.device).tril()
    if reset_BT is None:
        decay_BcGKLL = decay_BcGKLL.masked_fill(~visible, -torch.inf).exp()
        decay_to_end_BcGKL = (total_BcGKL[..., -1:] - total_BcGKL).exp()
        decay_from_start_BcGKL = total_BcGKL.exp()
    else:
        # document[i] is the number of resets up to i. Token i reads token j or a chunk boundary if the counts agree.
        document_BcL = F.pad(reset_BT, (0, pad)).reshape(batch, -1, L).cumsum(2)
        same_BcLL = (document_BcL.unsqueeze(-1) == document_BcL.unsqueeze(-2)) & visible
        decay_BcGKLL = decay_BcGKLL.masked_fill(~same_BcLL[:, :, None, None], -torch.inf).exp()
        reaches_end_BcL = document_BcL == document_BcL[..., -1:]
        reads_start_BcL = document_BcL == 0
        decay_to_end_BcGKL = (
            (total_BcGKL[..., -1:] - total_BcGKL).masked_fill(~reaches_end_BcL[:, :, None, None], -torch.inf).exp()
        )
        decay_from_start_BcGKL = total_BcGKL.masked_fill(~reads_start_BcL[:, :, None, None], -torch.inf).exp()

    xdt_BcGKLP = (x_BcLGKP * dt_BcLGK.unsqueeze(-1)).movedim(2, 4)
    weights_BcGLL = C_BcGLN @ B_BcGLN.transpose(-1, -2)
    y_BcGKLP = (weights_BcGLL.unsqueeze(3) * decay_BcGKLL) @ xdt_BcGKLP

    # The contribution of each chunk to the state at its end, and the decay of the state over the chunk.
    added_BcGKPN = (xdt_BcGKLP * decay_to_end_BcGKL.unsqueeze(-1)).transpose(-1, -2) @ B_BcGLN.unsqueeze(3)
    chunk_decay_BcGK11 = decay_from_start_BcGKL[..., -1, None, None]
    if initial_state_BHPN is None:
        state_BGKPN = x_BTHP.new_zeros(batch, groups, per_group, headdim, n, dtype=compute_dtype)
    else:
        state_BGKPN = initial_state_BHPN.to(compute_dtype).reshape(batch, groups, per_group, headdim, n)
    starts = []
    for c in range(added_BcGKPN.shape[1]):
        starts.append(state_BGKPN)
        state_BGKPN = chunk_decay_BcGK11[:, c] * state_BGKPN + added_BcGKPN[:, c]
    start_BcGKPN = torch.stack(starts, dim=1)
    carried_BcGKLP = C_BcGLN.unsqueeze(3) @ start_BcGKPN.transpose(-1, -2)
    y_BcGKLP = y_BcGKLP + carried_BcGKLP * decay_from_start_BcGKL.unsqueeze(-1)

    y_BTHP = y_BcGKLP.movedim(4, 2).reshape(batch, -1, heads, headdim)[:, :length]
    y_BTHP = y_BTHP + x_BTHP.to(compute_dtype) * D_H.to(compute_dtype).unsqueeze(-1)
    return y_BTHP.to(x_BTHP.dtype), state_BGKPN.reshape(batch, heads, headdim, n)
