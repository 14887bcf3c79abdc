"""Divides a few long sequences into segments that run in parallel.

The forward kernel processes the chunks of a sequence in order, with one program per head, so a single stream would
leave most of a GPU idle. The recurrence is linear in its state. First, all segments run in parallel from a zero state.
Their final states, decayed over the following segments, give the initial state of each segment. Then all segments run
again from these states. This doubles the work but takes a fraction of the time.

Legend: B batch, S segments (K as sources; M = B·S), T time, H heads, P head dimension, N state.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from jepamba.ops.ssd.triton_launch import PROGRAMS

MIN_CHUNKS = 8
"""Minimum chunks of a segment."""
MIN_SEGMENTS = 4
"""Minimum number of segments for which two passes are faster than one."""


def num_segments(programs: int, tokens: int, L: int) -> int:
    """Return the number of segments of each sequence, a power of 2. It is 1 if segments would not save time.

    Arguments: `programs`: programs of a pass without segments; `tokens`: T; `L`: chunk length.
    """
    count = 1
    while (
        2 * count * programs <= PROGRAMS and tokens % (2 * count * L) == 0 and tokens // (2 * count) >= MIN_CHUNKS * L
    ):
        count *= 2
    return count if count >= MIN_SEGMENTS else 1


def split_time(tensor: Tensor, count: int) -> Tensor:
    """Return (B, T, …) as (B·S, T/S, …) with S = `count`, as a view if the time axis allows it."""
    segmented: Tensor = tensor.unflatten(1, (count, -1)).flatten(0, 1)
    return segmented


def initial_states(
    segment_states: Tensor, initial: Tensor | None, dt: Tensor, A: Tensor, reset: Tensor | None, dt_bias: Tensor | None
) -> Tensor:
    """Return the state at each segment's start (B·S, H, P, N).

    Arguments: `segment_states`: final states of the segments from a zero state (B, S, H, P, N); `initial`: (B, H, P,
    N); `dt`: (B, S, T/S, H); `reset`: (B, S, T/S). With `dt_bias`, dt is raw and `A` is A_log.
    """
    if dt_bias is not None:
        dt, A = F.softplus(dt.float() + dt_bias), -torch.exp(A.float())
    first = (
        torch.zeros_like(segment_states[:, :1]) if initial is None else initial.unsqueeze(1).to(segment_states.dtype)
    )
    source_BKHPN = torch.cat([first, segment_states[:, :-1]], dim=1)
    # float64, because the differences of long sums lose precision.
    decay_BSH = (dt.double() * A.double()).sum(2)
    before_BHS = (decay_BSH.cumsum(1) - decay_BSH).transpose(1, 2)
    weight_BHSK = (before_BHS.unsqueeze(-1) - before_BHS.unsqueeze(-2)).tril().exp().tril()
    if reset is not None:
        resets_BS = reset.sum(2)
        documents_BS = resets_BS.cumsum(1) - resets_BS
        weight_BHSK = weight_BHSK * (documents_BS.unsqueeze(-1) == documents_BS.unsqueeze(-2)).unsqueeze(1)
    with torch.autocast(segment_states.device.type, enabled=False):
        start_BHSX = weight_BHSK.to(segment_states.dtype) @ source_BKHPN.transpose(1, 2).flatten(-2)
    start_MHPN: Tensor = start_BHSX.transpose(1, 2).unflatten(-1, segment_states.shape[-2:]).flatten(0, 1)
    return start_MHPN.contiguous()
