"""The operator in plain PyTorch, chunk by chunk: matrix products inside a chunk, a short recurrence between chunks.

After the state-space dual form of Dao & Gu 2024, section 6. Within a chunk token i reads token j <= i with weight
C_i·B_j · exp(a_{j+1} + … + a_i) · dt_j, where a = dt·A; every chunk also reads the state left by those before it.
A reset is a decay of exactly 0: what lies on the other side of it is masked, never multiplied by a tiny number.

Legend: B batch, c chunks, L chunk length, H heads (K heads of each of G groups, H = G·K), P head width, N state.
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
    """(y_BTHP, final_state_BHPN); see `jepamba.ops.ssd.ssd` for shapes. Differentiable in every float input.

    Time O(T·L), memory O(T·L) per head; L = `chunk_size` changes the result only by rounding.
    """
    batch, length, heads, width = x_BTHP.shape
    groups, n = B_BTGN.shape[2:]
    per_group = heads // groups
    wide = torch.promote_types(x_BTHP.dtype, torch.float32)
    L = min(chunk_size, length)
    pad = -length % L
    dt_BTH = dt_BTH.to(wide)
    # Padding tokens have dt = 0: they decay nothing and add nothing, so the final state is the one after token T.
    x_BcLGKP = F.pad(x_BTHP, (0, 0, 0, 0, 0, pad)).reshape(batch, -1, L, groups, per_group, width).to(wide)
    dt_BcLGK = F.pad(dt_BTH, (0, 0, 0, pad)).reshape(batch, -1, L, groups, per_group)
    B_BcGLN = F.pad(B_BTGN, (0, 0, 0, 0, 0, pad)).reshape(batch, -1, L, groups, n).transpose(2, 3).to(wide)
    C_BcGLN = F.pad(C_BTGN, (0, 0, 0, 0, 0, pad)).reshape(batch, -1, L, groups, n).transpose(2, 3).to(wide)

    # total[i] = a_1 + … + a_i within the chunk, so that the decay from j to i is exp(total[i] − total[j]).
    total_BcGKL = (dt_BcLGK * A_H.to(wide).view(groups, per_group)).cumsum(2).movedim(2, 4)
    decay_BcGKLL = total_BcGKL.unsqueeze(-1) - total_BcGKL.unsqueeze(-2)
    visible = torch.ones(L, L, dtype=torch.bool, device=x_BTHP.device).tril()
    if reset_BT is None:
        decay_BcGKLL = decay_BcGKLL.masked_fill(~visible, -torch.inf).exp()
        into_BcGKL = (total_BcGKL[..., -1:] - total_BcGKL).exp()
        from_BcGKL = total_BcGKL.exp()
    else:
        # document[i] counts the resets up to i: two tokens see each other, or a chunk's edge, where the counts agree.
        document_BcL = F.pad(reset_BT, (0, pad)).reshape(batch, -1, L).cumsum(2)
        same_BcLL = (document_BcL.unsqueeze(-1) == document_BcL.unsqueeze(-2)) & visible
        decay_BcGKLL = decay_BcGKLL.masked_fill(~same_BcLL[:, :, None, None], -torch.inf).exp()
        last_BcL = document_BcL == document_BcL[..., -1:]
        first_BcL = document_BcL == 0
        into_BcGKL = (total_BcGKL[..., -1:] - total_BcGKL).masked_fill(~last_BcL[:, :, None, None], -torch.inf).exp()
        from_BcGKL = total_BcGKL.masked_fill(~first_BcL[:, :, None, None], -torch.inf).exp()

    xdt_BcGKLP = (x_BcLGKP * dt_BcLGK.unsqueeze(-1)).movedim(2, 4)
    weights_BcGLL = C_BcGLN @ B_BcGLN.transpose(-1, -2)
    y_BcGKLP = (weights_BcGLL.unsqueeze(3) * decay_BcGKLL) @ xdt_BcGKLP

    # What each chunk adds to the state at its end, and how much of the state at its start survives to it.
    added_BcGKPN = (xdt_BcGKLP * into_BcGKL.unsqueeze(-1)).transpose(-1, -2) @ B_BcGLN.unsqueeze(3)
    survival_BcGK11 = from_BcGKL[..., -1, None, None]
    if initial_state_BHPN is None:
        state_BGKPN = x_BTHP.new_zeros(batch, groups, per_group, width, n, dtype=wide)
    else:
        state_BGKPN = initial_state_BHPN.to(wide).reshape(batch, groups, per_group, width, n)
    starts = []
    for c in range(added_BcGKPN.shape[1]):
        starts.append(state_BGKPN)
        state_BGKPN = survival_BcGK11[:, c] * state_BGKPN + added_BcGKPN[:, c]
    start_BcGKPN = torch.stack(starts, dim=1)
    carried_BcGKLP = C_BcGLN.unsqueeze(3) @ start_BcGKPN.transpose(-1, -2)
    y_BcGKLP = y_BcGKLP + carried_BcGKLP * from_BcGKL.unsqueeze(-1)

    y_BTHP = y_BcGKLP.movedim(4, 2).reshape(batch, -1, heads, width)[:, :length]
    y_BTHP = y_BTHP + x_BTHP.to(wide) * D_H.to(wide).unsqueeze(-1)
    return y_BTHP.to(x_BTHP.dtype), state_BGKPN.reshape(batch, heads, width, n)
