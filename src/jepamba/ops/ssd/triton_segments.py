"""Few long sequences in segments: the forward kernel walks a sequence's chunks one after the other, with one program
for each head, and a text that is read as a single stream would leave most of a GPU idle.

The recurrence is linear in its state. Every segment is walked from an empty state first, side by side with the others;
what it leaves behind decays over the segments that follow, which gives each segment's true initial state; with those
they are walked again. Twice the work, in a fraction of the time.

Legend: B batch, S segments (K as sources; M = B·S), T time, H heads, P head width, N state.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from jepamba.ops.ssd.triton_launch import PROGRAMS

CHUNKS = 8
"""Chunks of a segment, at least."""
WORTH = 4
"""Segments from which on two passes take less time than one."""


def segments(programs: int, tokens: int, L: int) -> int:
    """Segments of each sequence where one pass would have so many programs: a power of 2; 1 if not worth it."""
    count = 1
    while 2 * count * programs <= PROGRAMS and tokens % (2 * count * L) == 0 and tokens // (2 * count) >= CHUNKS * L:
        count *= 2
    return count if count >= WORTH else 1


def cut(tensor: Tensor, count: int) -> Tensor:
    """(B, T, …) as (B·S, T/S, …), S = `count`; no copy where a row of time follows the other."""
    parts: Tensor = tensor.unflatten(1, (count, -1)).flatten(0, 1)
    return parts


def initial_states(
    left: Tensor, initial: Tensor | None, dt: Tensor, A: Tensor, reset: Tensor | None, dt_bias: Tensor | None
) -> Tensor:
    """The state at every segment's start (B·S, H, P, N).

    Arguments: `left`, what segments from an empty state leave behind (B, S, H, P, N); `initial` (B, H, P, N); dt
    (B, S, T/S, H) and resets (B, S, T/S) by segment; with `dt_bias`, dt is raw and A stands for A_log.
    """
    if dt_bias is not None:
        dt, A = F.softplus(dt.float() + dt_bias), -torch.exp(A.float())
    first = torch.zeros_like(left[:, :1]) if initial is None else initial.unsqueeze(1).to(left.dtype)
    source_BKHPN = torch.cat([first, left[:, :-1]], dim=1)
    # Sums of many decays, of which differences are taken.
    decay_BSH = (dt.double() * A.double()).sum(2)
    before_BHS = (decay_BSH.cumsum(1) - decay_BSH).transpose(1, 2)
    weight_BHSK = (before_BHS.unsqueeze(-1) - before_BHS.unsqueeze(-2)).tril().exp().tril()
    if reset is not None:
        resets_BS = reset.sum(2)
        documents_BS = resets_BS.cumsum(1) - resets_BS
        weight_BHSK = weight_BHSK * (documents_BS.unsqueeze(-1) == documents_BS.unsqueeze(-2)).unsqueeze(1)
    with torch.autocast(left.device.type, enabled=False):
        start_BHSX = weight_BHSK.to(left.dtype) @ source_BKHPN.transpose(1, 2).flatten(-2)
    start_MHPN: Tensor = start_BHSX.transpose(1, 2).unflatten(-1, left.shape[-2:]).flatten(0, 1)
    return start_MHPN.contiguous()
