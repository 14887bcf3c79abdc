"""The sequence operator in Triton: `ssd_triton`, a custom operator with its own backward pass.

Forward: one kernel walks the chunks of a (sequence, head) with the state on chip. Backward: one kernel walks the chunks
from the end for the gradient of the state at each chunk's end; then every chunk of every sequence is independent, and one
kernel takes all its heads in turn, so that dB and dC, shared by the heads of a group, are summed on chip. No atomics: the
same inputs give the same bits. `docs/performance.md` has the count of bytes and operations behind this division.

Legend: B batch, T time, H heads, P head width, G groups, N state.
"""

import contextlib

import torch
import triton
from torch import Tensor

from jepamba.errors import UserError
from jepamba.ssd.triton_kernels import forward_kernel, gradient_kernel, state_kernel

WIDTHS = (32, 64, 128)
"""Head widths that the kernels take."""
STATES = (16, 32, 64, 128)
"""State widths that the kernels take."""
CHUNKS = (16, 32, 64, 128)
"""Chunk lengths that the kernels take."""
DTYPES = (torch.float32, torch.bfloat16)
PROGRAMS = 528
"""Programs that fill a large GPU (four for each of 132 multiprocessors); fewer chunks than that split their heads."""


def _check(
    x: Tensor, dt: Tensor, B: Tensor, C: Tensor, initial: Tensor | None, reset: Tensor | None, chunk: int
) -> None:
    """UserError for what the kernels do not do."""
    problem = ""
    batch, length, heads, width = x.shape
    groups, n = B.shape[2:]
    if x.dtype not in DTYPES or B.dtype != x.dtype or C.dtype != x.dtype:
        problem = f"x, B and C must share one dtype, float32 or bfloat16, not {x.dtype}, {B.dtype} and {C.dtype}"
    elif width not in WIDTHS or n not in STATES:
        problem = f"head width {width} must be one of {WIDTHS} and state {n} one of {STATES}"
    elif chunk not in CHUNKS:
        problem = f"chunk {chunk} must be one of {CHUNKS}"
    elif length == 0 or batch == 0:
        problem = "there must be at least one token and one sequence"
    elif heads % groups or B.shape != (batch, length, groups, n) or C.shape != B.shape or dt.shape != x.shape[:3]:
        problem = f"shapes do not fit: x {x.shape}, dt {dt.shape}, B {B.shape}, C {C.shape}"
    elif initial is not None and initial.shape != (batch, heads, width, n):
        problem = f"the initial state is {initial.shape}, not {(batch, heads, width, n)}"
    elif reset is not None and (reset.shape != x.shape[:2] or reset.dtype != torch.bool):
        problem = f"reset must be bool of shape {x.shape[:2]}, not {reset.dtype} of {reset.shape}"
    elif not x.is_cuda and not triton.knobs.runtime.interpret:
        problem = f"x is on {x.device}; the Triton kernels need a CUDA GPU"
    if problem:
        raise UserError(f"ssd_triton: {problem}; use ssd_chunked (plain PyTorch) for it")


def _rows(tensor: Tensor) -> Tensor:
    """The tensor itself where its last axis is contiguous, as the kernels read it; a copy otherwise."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _device(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def _reset(reset: Tensor | None, like: Tensor) -> tuple[Tensor, int, int]:
    """The resets as bytes with their strides; without resets any pointer will do, since it is never read."""
    return (like, 0, 0) if reset is None else (reset.view(torch.int8), reset.stride(0), reset.stride(1))


def _length(chunk: int, tokens: int) -> int:
    """A chunk no longer than a short sequence needs."""
    return min(chunk, max(16, triton.next_power_of_2(tokens)))


@torch.library.custom_op("jepamba::ssd_forward", mutates_args=())
def _forward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    initial: Tensor | None,
    reset: Tensor | None,
    chunk: int,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(y, final state in fp32, state at each chunk's start in x's dtype: (B, H, chunks, P, N), or empty)."""
    x, B, C = _rows(x), _rows(B), _rows(C)
    batch, tokens, heads, width = x.shape
    groups, n = B.shape[2:]
    L = _length(chunk, tokens)
    chunks = triton.cdiv(tokens, L)
    y = x.new_empty(batch, tokens, heads, width)
    final = x.new_empty(batch, heads, width, n, dtype=torch.float32)
    starts = x.new_empty((batch, heads, chunks, width, n) if keep else (0,))
    bytes_, reset_sb, reset_st = _reset(reset, x)
    block = min(width, 64)
    with _device(x):
        forward_kernel[(heads * (width // block), batch)](
            x, dt, A, B, C, D, x if initial is None else initial.contiguous(), bytes_, y, final, starts,
            tokens, heads, heads // groups,
            *x.stride()[:3], *dt.stride(), *B.stride()[:3], *C.stride()[:3], reset_sb, reset_st,
            L=L, P=width, P_BLOCK=block, N=n,
            HAS_INITIAL=initial is not None, HAS_RESET=reset is not None, KEEP=keep, STAGES=2,
            num_warps=8 if L * n > 64 * 64 else 4,
        )  # fmt: skip
    return y, final, starts


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
    chunk: int,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, tokens, heads, width = x.shape
    L = _length(chunk, int(tokens))
    n = B.shape[3]
    shape = (batch, heads, (tokens + L - 1) // L, width, n) if keep else (0,)
    y = x.new_empty(batch, tokens, heads, width)
    return y, x.new_empty(batch, heads, width, n, dtype=torch.float32), x.new_empty(shape)


@torch.library.custom_op("jepamba::ssd_backward", mutates_args=())
def _backward(
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
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, dt, A, B, C, D and the initial state; `starts` empty means that they are recomputed here."""
    x, B, C, dy = _rows(x), _rows(B), _rows(C), _rows(dy)
    batch, tokens, heads, width = x.shape
    groups, n = B.shape[2:]
    per_group = heads // groups
    L = _length(chunk, tokens)
    chunks = triton.cdiv(tokens, L)
    bytes_, reset_sb, reset_st = _reset(reset, x)
    fp32 = {"device": x.device, "dtype": torch.float32}
    dinitial = torch.empty(batch, heads, width, n, **fp32)  # type: ignore[arg-type]
    dends = x.new_empty(batch, heads, chunks, width, n)
    block = min(width, 64)

    def walk(u: Tensor, V: Tensor, edge: Tensor | None, states: Tensor, last: Tensor, reverse: bool) -> None:
        state_kernel[(heads * (width // block), batch)](
            u, dt, A, V, u if edge is None else edge.contiguous(), bytes_, states, last,
            tokens, heads, per_group,
            *u.stride()[:3], *dt.stride(), *V.stride()[:3], reset_sb, reset_st,
            L=L, P=width, P_BLOCK=block, N=n,
            REVERSE=reverse, HAS_EDGE=edge is not None, HAS_RESET=reset is not None, STAGES=3,
            num_warps=8 if L * n > 64 * 64 else 4,
        )  # fmt: skip

    splits = next(
        s
        for s in range(1, per_group + 1)
        if per_group % s == 0 and (batch * chunks * groups * s >= PROGRAMS or s == per_group)
    )
    parts = (splits, batch, tokens, groups, n)
    dB = torch.empty(parts, device=x.device, dtype=x.dtype if splits == 1 else torch.float32)
    dC = torch.empty_like(dB)
    dx = torch.empty(x.shape, device=x.device, dtype=x.dtype)
    ddt = torch.empty(dt.shape, **fp32)  # type: ignore[arg-type]
    dA = torch.empty(batch, chunks, heads, **fp32)  # type: ignore[arg-type]
    dD = torch.empty_like(dA)
    with _device(x):
        if starts.numel() == 0:
            starts = torch.empty_like(dends)
            walk(x, B, initial, starts, torch.empty_like(dinitial), reverse=False)
        walk(dy, C, dfinal, dends, dinitial, reverse=True)
        gradient_kernel[(chunks, batch, groups * splits)](
            x, dt, A, B, C, D, bytes_, dy, starts, dends, dx, ddt, dB, dC, dA, dD,
            tokens, heads, per_group, dB.stride(0),
            *x.stride()[:3], *dt.stride(), *B.stride()[:3], *C.stride()[:3], reset_sb, reset_st, *dy.stride()[:3],
            L=L, P=width, N=n, HEADS=per_group // splits, SPLITS=splits, HAS_RESET=reset is not None, STAGES=2,
            num_warps=8 if max(width, n, L) > 64 else 4,
        )  # fmt: skip
    if splits > 1:
        dB, dC = dB.sum(0).to(x.dtype), dC.sum(0).to(x.dtype)
    else:
        dB, dC = dB.squeeze(0), dC.squeeze(0)
    return dx, ddt.to(dt.dtype), dA.sum((0, 1)).to(A.dtype), dB, dC, dD.sum((0, 1)).to(D.dtype), dinitial


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
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    state = x.new_empty(x.shape[0], x.shape[2], x.shape[3], B.shape[3], dtype=torch.float32)
    like = [tensor.new_empty(tensor.shape) for tensor in (x, dt, A, B, C, D)]
    return like[0], like[1], like[2], like[3], like[4], like[5], state


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    *tensors, chunk, _ = inputs
    ctx.save_for_backward(*tensors, output[2])
    ctx.chunk = chunk
    ctx.set_materialize_grads(False)


def _gradients(ctx, dy, dfinal, _) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
    x, dt, A, B, C, D, initial, reset, starts = ctx.saved_tensors
    if dy is None:
        dy = torch.zeros_like(x)
    *grads, dinitial = torch.ops.jepamba.ssd_backward(dy, dfinal, x, dt, A, B, C, D, initial, reset, starts, ctx.chunk)
    return *grads, None if initial is None else dinitial.to(initial.dtype), None, None, None


_forward.register_autograd(_gradients, setup_context=_setup_context)


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
    chunk: int = 64,
    keep_states: bool = True,
) -> tuple[Tensor, Tensor]:
    """(y_BTHP, final_state_BHPN in fp32); see `jepamba.ssd.ssd`. Differentiable in every float input, bit for bit repeatable.

    x, B and C are all bfloat16 or all float32 (products in full fp32 then), and may be slices whose last axis is contiguous.
    keep_states: the forward pass stores the state at each chunk's start for the backward pass (x's dtype); otherwise the
    backward pass recomputes them. Raises `UserError` for sizes and dtypes that the kernels do not take.
    """
    _check(x_BTHP, dt_BTH, B_BTGN, C_BTGN, initial_state_BHPN, reset_BT, chunk)
    inputs = (x_BTHP, dt_BTH, A_H, B_BTGN, C_BTGN, D_H, initial_state_BHPN)
    keep = keep_states and torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
    y, final, _ = torch.ops.jepamba.ssd_forward(*inputs, reset_BT, chunk, keep)
    return y, final
