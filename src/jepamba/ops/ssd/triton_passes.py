"""The forward and the backward pass of the sequence operator by Triton kernels, without autograd.

Forward: each program of one kernel processes the chunks of one (sequence, head) in order, with the state on chip. A few
long sequences are divided into segments (`triton_segments`). Backward: one kernel processes the chunks in reverse order
for the gradient of the state at each chunk's end. Then all chunks are independent. One kernel loops over the heads of a
chunk, so that dB and dC, which the heads of a group share, are summed on chip. There are no atomics, so results are
deterministic. `docs/performance.md` has the counts of bytes and operations.

Legend: B batch, T time, H heads, P head dimension, G groups, N state; K programs of a head, S summed gradients.
"""

import torch
import triton
from torch import Tensor

from jepamba.ops.dispatch import on_device
from jepamba.ops.ssd.triton_decays import decay_gradient_kernel
from jepamba.ops.ssd.triton_kernels import forward_kernel, gradient_kernel, state_kernel
from jepamba.ops.ssd.triton_launch import (
    BLOCK,
    GRADIENT_PROGRAMS,
    chunk_length,
    decay_tensors,
    gradient_launches,
    launch,
    pairs,
    reset_bytes,
    states_of,
    tiles,
)
from jepamba.ops.ssd.triton_segments import initial_states, num_segments, split_time


def run_forward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    initial: Tensor | None,
    reset: Tensor | None,
    chunk_size: int,
    keep: bool,
    dt_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return (y, final state in fp32, state at each chunk's start, and the two tensors of `decay_tensors`).

    The chunk states (B, H, chunks, P, N) have the dtype of x. Without `keep`, the last three tensors are empty. With
    `dt_bias`, the kernels compute dt as softplus(dt + dt_bias), and A as −exp(A), where `A` is A_log.
    """
    batch, tokens, heads, headdim = x.shape
    groups, n = B.shape[2:]
    L = chunk_length(chunk_size, x, n)
    block = min(headdim, 64)
    count = 1 if keep else num_segments(batch * heads * (headdim // block), tokens, L)
    if count > 1:
        segmented = [split_time(tensor, count) for tensor in (x, dt, B, C)]
        segmented_reset = None if reset is None else split_time(reset, count)

        def run_segments(initial: Tensor | None) -> tuple[Tensor, Tensor]:
            x_, dt_, B_, C_ = segmented
            return run_forward(x_, dt_, A, B_, C_, D, initial, segmented_reset, chunk_size, False, dt_bias)[:2]

        by_segment = (batch, count)
        segment_states = run_segments(None)[1].unflatten(0, by_segment)
        resets = None if segmented_reset is None else segmented_reset.unflatten(0, by_segment)
        segment_dt = segmented[1].unflatten(0, by_segment)
        y, final = run_segments(initial_states(segment_states, initial, segment_dt, A, resets, dt_bias))
        empty = x.new_empty(0), dt.new_empty(0, dtype=torch.float32), dt.new_empty(0, dtype=torch.int32)
        return y.view(x.shape), final.unflatten(0, by_segment)[:, -1].clone(), *empty
    y = x.new_empty(batch, tokens, heads, headdim)
    final = x.new_empty(batch, heads, headdim, n, dtype=torch.float32)
    starts = x.new_empty((batch, heads, triton.cdiv(tokens, L), headdim, n) if keep else (0,))
    with on_device(x):
        decays, documents = decay_tensors(dt, A, reset, L, dt_bias)
        forward_kernel[(heads * (headdim // block), batch)](
            tiles(x, L, block), decays[0], decays[1], documents, tiles(B, L, n), tiles(C, L, n), D,
            x if initial is None else initial.contiguous(),
            tiles(y, L, block, written=True), final, states_of(starts, block) if keep else starts,
            heads, heads // groups, triton.cdiv(tokens, L), 0,
            L=L, P=headdim, P_BLOCK=block, N=n,
            HAS_INITIAL=initial is not None, HAS_RESET=reset is not None, KEEP=keep,
            **launch("forward", x.dtype, L, block, n),
        )  # fmt: skip
    if not keep:
        decays, documents = decays.new_empty(0), documents.new_empty(0)
    return y, final, starts, decays, documents


def run_backward(
    dy: Tensor,
    dfinal: Tensor | None,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    initial: Tensor | None,
    reset: Tensor | None,
    starts: Tensor,
    decays: Tensor,
    documents: Tensor,
    chunk_size: int,
    into: tuple[Tensor, Tensor, Tensor, Tensor],
    dt_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return (partial sums of the gradients of A and D in fp32 (K, 2, H), gradient of the initial state).

    With `dt_bias`, as in `run_forward`, the gradients are of the raw dt and A_log, and the partial sums (K, 3, H)
    include dt_bias last. The caller sums over K.

    Arguments: `into`: output tensors for the gradients of x, dt, B and C. They can be column slices of (batch · time,
    any) matrices with rows of a multiple of 16 bytes. The tensor for dt can have columns after the heads, which become
    0. `starts`: the states at chunk starts; if it is empty, they are recomputed.
    """
    dx, ddt, dB_out, dC_out = into
    batch, tokens, heads, headdim = x.shape
    groups, n = B.shape[2:]
    per_group = heads // groups
    L = chunk_length(chunk_size, x, n)
    chunks = triton.cdiv(tokens, L)
    dinitial = x.new_empty(batch, heads, headdim, n, dtype=torch.float32)
    dends = x.new_empty(batch, heads, chunks, headdim, n)
    block = min(headdim, 64)

    def run_states(u: Tensor, V: Tensor, edge: Tensor | None, states: Tensor, last: Tensor, reverse: bool) -> None:
        state_kernel[(heads * (headdim // block), batch)](
            tiles(u, L, block), decays[0], decays[1], documents, tiles(V, L, n),
            u if edge is None else edge.contiguous(), states_of(states, block), last,
            heads, per_group, chunks,
            L=L, P=headdim, P_BLOCK=block, N=n,
            REVERSE=reverse, HAS_EDGE=edge is not None, HAS_RESET=reset is not None,
            **launch("state", x.dtype, L, block, n),
        )  # fmt: skip

    divisors = [s for s in range(1, per_group + 1) if per_group % s == 0]
    splits = next((s for s in divisors if batch * chunks * groups * s >= GRADIENT_PROGRAMS), per_group)
    partial_shape = (splits, batch, tokens, groups, n)
    # If the heads are split over programs, partial sums are added in a fixed order.
    dB = dB_out.unsqueeze(0) if splits == 1 else x.new_empty(partial_shape, dtype=torch.float32)
    dC = dC_out.unsqueeze(0) if splits == 1 else torch.empty_like(dB)
    sums = x.new_empty(4, batch, heads, chunks * L, dtype=torch.float32)
    blocks = triton.cdiv(chunks, BLOCK)
    partials_KSH = x.new_empty(batch * blocks, 2 if dt_bias is None else 3, heads, dtype=torch.float32)
    with on_device(x):
        if starts.numel() == 0:
            decays, documents = decay_tensors(dt, A, reset, L, dt_bias)
            starts = x.new_empty(batch, heads, chunks, headdim, n)
            run_states(x, B, initial, starts, torch.empty_like(dinitial), reverse=False)
        run_states(dy, C, dfinal, dends, dinitial, reverse=True)
        B_tiles, C_tiles = tiles(B, L, n), tiles(C, L, n)
        for with_B, with_C in gradient_launches(n):
            gradient_kernel[(chunks, batch, groups * splits)](
                tiles(x, L, headdim), decays[0], decays[1], documents,
                B_tiles, C_tiles, pairs(B_tiles), pairs(C_tiles), D, tiles(dy, L, headdim),
                states_of(starts, headdim), states_of(dends, headdim), tiles(dx, L, headdim, written=True),
                dB, dC, sums,
                tokens, heads, per_group, chunks, 0, *dB.stride()[:3], sums.stride(0),
                L=L, P=headdim, N=n, HEADS=per_group // splits, SPLITS=splits, HAS_RESET=reset is not None,
                PAIRED=x.dtype == torch.bfloat16, WITH_B=with_B, WITH_C=with_C,
                **launch("gradient", x.dtype, L, headdim, n),
            )  # fmt: skip
        bytes_, reset_sb, reset_st = reset_bytes(reset, dt)
        decay_gradient_kernel[(heads, batch, blocks)](
            decays[0], decays[1], documents, A, bytes_, sums, starts, dends, ddt, partials_KSH,
            tokens, heads, chunks, ddt.shape[2], sums.stride(0), *ddt.stride(), reset_sb, reset_st,
            L=L, STATE=headdim * n, BLOCK=BLOCK, HAS_RESET=reset is not None, RAW=dt_bias is not None,
        )  # fmt: skip
    if splits > 1:
        dB_out.copy_(dB.sum(0))
        dC_out.copy_(dC.sum(0))
    return partials_KSH, dinitial
