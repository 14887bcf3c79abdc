"""The sequence operator in Triton: `ssd_triton`, a custom operator with its own backward pass.

Forward: one kernel walks the chunks of a (sequence, head) with the state on chip (of few long sequences in segments:
`triton_segments`). Backward: one kernel walks the chunks
from the end for the gradient of the state at each chunk's end; then every chunk of every sequence is independent, and
one kernel takes all its heads in turn, so that dB and dC, shared by the heads of a group, are summed on chip. No
atomics: the same inputs give the same bits. `docs/performance.md` has the counts of bytes and operations behind this.

Legend: B batch, T time, H heads, P head width, G groups, N state; K programs of a head, S gradients that are sums.
"""

from collections.abc import Callable

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from jepamba.ops.dispatch import on_device
from jepamba.ops.ssd.triton_decays import decay_gradient_kernel
from jepamba.ops.ssd.triton_kernels import forward_kernel, gradient_kernel, state_kernel
from jepamba.ops.ssd.triton_launch import (
    BLOCK,
    PROGRAMS,
    check,
    decay_tensors,
    launch,
    length,
    pairs,
    reset_bytes,
    states_of,
    takes,
    tiles,
)
from jepamba.ops.ssd.triton_segments import cut, initial_states, segments

__all__ = ["run_backward", "run_forward", "ssd_triton", "takes"]


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
    """(y, final state in fp32; where `keep`, otherwise empty: state at each chunk's start in x's dtype
    (B, H, chunks, P, N), and the two tensors of `decay_tensors`).

    With `dt_bias`, `dt` is what a mixer's projection gives and `A` is A_log: softplus(dt + dt_bias) and −exp(A_log)
    are computed on the way.
    """
    batch, tokens, heads, width = x.shape
    groups, n = B.shape[2:]
    L = length(chunk_size, x, n)
    block = min(width, 64)
    count = 1 if keep else segments(batch * heads * (width // block), tokens, L)
    if count > 1:
        parts = [cut(tensor, count) for tensor in (x, dt, B, C)]
        cut_reset = None if reset is None else cut(reset, count)

        def walk(initial: Tensor | None) -> tuple[Tensor, Tensor]:
            x_, dt_, B_, C_ = parts
            return run_forward(x_, dt_, A, B_, C_, D, initial, cut_reset, chunk_size, False, dt_bias)[:2]

        by_segment = (batch, count)
        left = walk(None)[1].unflatten(0, by_segment)
        resets = None if cut_reset is None else cut_reset.unflatten(0, by_segment)
        y, final = walk(initial_states(left, initial, parts[1].unflatten(0, by_segment), A, resets, dt_bias))
        nothing = x.new_empty(0), dt.new_empty(0, dtype=torch.float32), dt.new_empty(0, dtype=torch.int32)
        return y.view(x.shape), final.unflatten(0, by_segment)[:, -1].clone(), *nothing
    y = x.new_empty(batch, tokens, heads, width)
    final = x.new_empty(batch, heads, width, n, dtype=torch.float32)
    starts = x.new_empty((batch, heads, triton.cdiv(tokens, L), width, n) if keep else (0,))
    with on_device(x):
        decays, documents = decay_tensors(dt, A, reset, L, dt_bias)
        forward_kernel[(heads * (width // block), batch)](
            tiles(x, L, block), decays[0], decays[1], documents, tiles(B, L, n), tiles(C, L, n), D,
            x if initial is None else initial.contiguous(),
            tiles(y, L, block, written=True), final, states_of(starts, block) if keep else starts,
            heads, heads // groups, triton.cdiv(tokens, L), 0,
            L=L, P=width, P_BLOCK=block, N=n,
            HAS_INITIAL=initial is not None, HAS_RESET=reset is not None, KEEP=keep,
            **launch("forward", x.dtype, L, block, n),
        )  # fmt: skip
    if not keep:
        decays, documents = decays.new_empty(0), documents.new_empty(0)
    return y, final, starts, decays, documents


_forward = torch.library.custom_op(
    "jepamba::ssd_forward",
    run_forward,
    mutates_args=(),
    # Without dt_bias: a gradient for it would have to come from the operator's backward pass.
    schema="(Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor D, Tensor? initial, Tensor? reset, "
    "SymInt chunk, bool keep) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)


@_forward.register_fake
def _(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, tokens, heads, width = x.shape
    L = length(chunk_size, x, B.shape[3])
    chunks = (tokens + L - 1) // L
    n = B.shape[3]
    return (
        x.new_empty(batch, tokens, heads, width),
        x.new_empty(batch, heads, width, n, dtype=torch.float32),
        x.new_empty((batch, heads, chunks, width, n) if keep else (0,)),
        x.new_empty((2, batch, heads, chunks * L) if keep else (0,), dtype=torch.float32),
        x.new_empty((batch, chunks * L) if keep and reset is not None else (0,), dtype=torch.int32),
    )


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
    """(fp32 parts (K, 2, H) of the gradients of A and D, to be summed over K, and the gradient of the initial state);
    those of x, dt, B and C are written `into` tensors of their shapes.

    These may be slices of the rows of (batch · time, any) matrices, if these rows are whole 16 bytes. That of dt may
    have columns behind those of the heads: they become 0. `starts` empty means that the states at chunk starts are
    recomputed here. With `dt_bias`, as in `run_forward`: the gradients are those of the raw dt and A_log, and the parts
    (K, 3, H), those of dt_bias last.
    """
    dx, ddt, dB_out, dC_out = into
    batch, tokens, heads, width = x.shape
    groups, n = B.shape[2:]
    per_group = heads // groups
    L = length(chunk_size, x, n)
    chunks = triton.cdiv(tokens, L)
    dinitial = x.new_empty(batch, heads, width, n, dtype=torch.float32)
    dends = x.new_empty(batch, heads, chunks, width, n)
    block = min(width, 64)

    def walk(u: Tensor, V: Tensor, edge: Tensor | None, states: Tensor, last: Tensor, reverse: bool) -> None:
        state_kernel[(heads * (width // block), batch)](
            tiles(u, L, block), decays[0], decays[1], documents, tiles(V, L, n),
            u if edge is None else edge.contiguous(), states_of(states, block), last,
            heads, per_group, chunks,
            L=L, P=width, P_BLOCK=block, N=n,
            REVERSE=reverse, HAS_EDGE=edge is not None, HAS_RESET=reset is not None,
            **launch("state", x.dtype, L, block, n),
        )  # fmt: skip

    choices = [s for s in range(1, per_group + 1) if per_group % s == 0]
    splits = next((s for s in choices if batch * chunks * groups * s >= PROGRAMS), per_group)
    parts = (splits, batch, tokens, groups, n)
    # Heads that are split over programs leave parts, summed in a fixed order.
    dB = dB_out.unsqueeze(0) if splits == 1 else x.new_empty(parts, dtype=torch.float32)
    dC = dC_out.unsqueeze(0) if splits == 1 else torch.empty_like(dB)
    sums = x.new_empty(4, batch, heads, chunks * L, dtype=torch.float32)
    passing = x.new_empty(batch, heads, chunks, width, dtype=torch.float32)
    blocks = triton.cdiv(chunks, BLOCK)
    parts_KSH = x.new_empty(batch * blocks, 2 if dt_bias is None else 3, heads, dtype=torch.float32)
    with on_device(x):
        if starts.numel() == 0:
            decays, documents = decay_tensors(dt, A, reset, L, dt_bias)
            starts = x.new_empty(batch, heads, chunks, width, n)
            walk(x, B, initial, starts, torch.empty_like(dinitial), reverse=False)
        walk(dy, C, dfinal, dends, dinitial, reverse=True)
        B_tiles, C_tiles = tiles(B, L, n), tiles(C, L, n)
        gradient_kernel[(chunks, batch, groups * splits)](
            tiles(x, L, width), decays[0], decays[1], documents,
            B_tiles, C_tiles, pairs(B_tiles), pairs(C_tiles), D, tiles(dy, L, width),
            states_of(starts, width), states_of(dends, width), tiles(dx, L, width, written=True), dB, dC, sums, passing,
            tokens, heads, per_group, chunks, 0, *dB.stride()[:3], sums.stride(0),
            L=L, P=width, N=n, HEADS=per_group // splits, SPLITS=splits, HAS_RESET=reset is not None,
            PAIRED=x.dtype == torch.bfloat16,
            **launch("gradient", x.dtype, L, width, n),
        )  # fmt: skip
        bytes_, reset_sb, reset_st = reset_bytes(reset, dt)
        decay_gradient_kernel[(heads, batch, blocks)](
            decays[0], decays[1], documents, A, bytes_, sums, passing, ddt, parts_KSH,
            tokens, heads, chunks, ddt.shape[2], sums.stride(0), *ddt.stride(), reset_sb, reset_st,
            L=L, P=width, BLOCK=BLOCK, HAS_RESET=reset is not None, RAW=dt_bias is not None,
        )  # fmt: skip
    if splits > 1:
        dB_out.copy_(dB.sum(0))
        dC_out.copy_(dC.sum(0))
    return parts_KSH, dinitial


def _new_gradients(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, dt, A, B, C, D and the initial state."""
    dx, ddt, dB, dC = (tensor.new_empty(tensor.shape) for tensor in (x, dt, B, C))
    saved = (starts, decays, documents, chunk_size)
    parts_K2H, dinitial = run_backward(dy, dfinal, x, dt, A, B, C, D, initial, reset, *saved, (dx, ddt, dB, dC))
    # Each a tensor of its own, as an operator's results must be.
    dA, dD = (parts_K2H[:, k].sum(0).to(like.dtype) for k, like in enumerate((A, D)))
    return dx, ddt, dA, dB, dC, dD, dinitial


_backward = torch.library.custom_op("jepamba::ssd_backward", _new_gradients, mutates_args=())


@_backward.register_fake
def _(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    state = x.new_empty(x.shape[0], x.shape[2], x.shape[3], B.shape[3], dtype=torch.float32)
    like = [tensor.new_empty(tensor.shape) for tensor in (x, dt, A, B, C, D)]
    return like[0], like[1], like[2], like[3], like[4], like[5], state


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    *tensors, chunk_size, _ = inputs
    ctx.save_for_backward(*tensors, *output[2:])
    ctx.chunk_size = chunk_size
    ctx.set_materialize_grads(False)


def _gradients(ctx, dy, dfinal, *_, run=None) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
    x, dt, A, B, C, D, initial, reset, starts, decays, documents = ctx.saved_tensors
    if dy is None:
        dy = torch.zeros_like(x)
    *grads, dinitial = (run or torch.ops.jepamba.ssd_backward)(
        dy, dfinal, x, dt, A, B, C, D, initial, reset, starts, decays, documents, ctx.chunk_size
    )
    return *grads, None if initial is None else dinitial.to(initial.dtype), None, None, None


_forward.register_autograd(_gradients, setup_context=_setup_context)


class _Eager(torch.autograd.Function):
    """The same operator outside torch.compile, without the dispatcher's work on every call."""

    @staticmethod
    def forward(*inputs):  # type: ignore[no-untyped-def]
        return run_forward(*inputs)

    setup_context = staticmethod(_setup_context)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):  # type: ignore[no-untyped-def]
        return _gradients(ctx, *grads, run=_new_gradients)


def ssd_triton(
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
    keep_states: bool = True,
) -> tuple[Tensor, Tensor]:
    """(y_BTHP, final_state_BHPN in fp32); see `jepamba.ops.ssd.ssd`. Differentiable in every float input, repeatable.

    x, B and C are all bfloat16 or all float32 (products keep full precision then), and may be slices of larger tensors.
    keep_states: the forward pass stores the state at each chunk's start for the backward pass (in x's dtype); otherwise
    the backward pass recomputes them. Raises `UserError` for sizes and dtypes that the kernels do not take.
    """
    check(x_BTHP, dt_BTH, A_H, B_BTGN, C_BTGN, D_H, initial_state_BHPN, reset_BT, chunk_size)
    inputs = (x_BTHP, dt_BTH, A_H.contiguous(), B_BTGN, C_BTGN, D_H.contiguous(), initial_state_BHPN)
    keep = keep_states and torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
    plain = type(x_BTHP) in (Tensor, torch.nn.Parameter) and not torch.compiler.is_compiling()
    operator: Callable[..., tuple[Tensor, ...]] = _Eager.apply if plain else torch.ops.jepamba.ssd_forward
    y, final, *_ = operator(*inputs, reset_BT, chunk_size, keep)
    return y, final
