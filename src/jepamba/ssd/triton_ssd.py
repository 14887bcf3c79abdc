"""The sequence operator in Triton: `ssd_triton`, a custom operator with its own backward pass.

Forward: one kernel walks the chunks of a (sequence, head) with the state on chip. Backward: one kernel walks the chunks
from the end for the gradient of the state at each chunk's end; then every chunk of every sequence is independent, and
one kernel takes all its heads in turn, so that dB and dC, shared by the heads of a group, are summed on chip. No
atomics: the same inputs give the same bits. `docs/performance.md` has the counts of bytes and operations behind this.

Legend: B batch, T time, H heads, P head width, G groups, N state.
"""

import contextlib

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from jepamba.errors import UserError
from jepamba.ssd.triton_kernels import (
    decay_gradient_kernel,
    forward_kernel,
    gradient_kernel,
    prepare_kernel,
    state_kernel,
)

WIDTHS = (32, 64, 128)
"""Head widths that the kernels take."""
STATES = (16, 32, 64, 128)
"""State widths that the kernels take."""
CHUNKS = (16, 32, 64, 128)
"""Chunk lengths that the kernels take."""
DTYPES = (torch.float32, torch.bfloat16)
FLOAT32 = "tf32x3"
"""How products of float32 are taken: each as three of TF32, which keeps full precision on the tensor cores."""
BLOCK = 4
"""Chunks that a program of the two small kernels takes at once."""
PROGRAMS = 528
"""Programs that fill a large GPU (four for each of 132 multiprocessors); fewer chunks than that split their heads."""


TUNED = {
    "forward": {"num_warps": 4, "STAGES": 3},
    "state": {"num_warps": 4, "STAGES": 2},
    "gradient": {"num_warps": 4, "STAGES": 2},
}
"""Launch settings of each kernel, the fastest measured for tiles of 64 × 64 on an H100 (docs/performance.md)."""


def _launch(kernel: str, dtype: torch.dtype, L: int, width: int, n: int) -> dict[str, int | str]:
    """Launch settings: as tuned, more warps where the tiles are larger; how float32 products are taken."""
    settings: dict[str, int | str] = dict(TUNED[kernel])
    if max(L, width, n) > 64:
        settings["num_warps"] = 8
    if dtype == torch.float32:
        settings["STAGES"] = 1
    return settings | {"PRECISION": FLOAT32}


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


def _tiles(tensor: Tensor, L: int, width: int) -> TensorDescriptor:
    """Descriptor of a (batch, time, heads, width) tensor for tiles of L tokens of one head; reads past the end give 0.

    The copy engine wants the last axis contiguous and everything else in steps of 16 bytes; a copy is made otherwise.
    """
    step = 16 // tensor.element_size()
    strides = tensor.stride()
    if strides[3] != 1 or any(s % step or not s for s in strides[:3]) or tensor.data_ptr() % 16:
        tensor = tensor.contiguous()
    return TensorDescriptor.from_tensor(tensor.transpose(1, 2), [1, 1, L, width])


def _pairs(tiles: TensorDescriptor) -> TensorDescriptor:
    """The same tiles of bfloat16 as pairs in int32; of float32, the tiles themselves, never read as pairs."""
    if tiles.base.dtype == torch.float32:
        return tiles
    base = tiles.base.view(torch.int32)
    return TensorDescriptor.from_tensor(base, [*tiles.block_shape[:3], tiles.block_shape[3] // 2])


def _states(tensor: Tensor, block: int) -> TensorDescriptor:
    """Descriptor of a (batch, heads, chunks, P, N) tensor for blocks of P of one state."""
    n = tensor.shape[-1]
    return TensorDescriptor.from_tensor(tensor.view(-1, tensor.shape[-2], n), [1, block, n])


def _device(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def _reset(reset: Tensor | None, like: Tensor) -> tuple[Tensor, int, int]:
    """The resets as bytes with their strides; without resets any pointer will do, since it is never read."""
    return (like, 0, 0) if reset is None else (reset.view(torch.int8), reset.stride(0), reset.stride(1))


def _length(chunk: int, tokens: int, dtype: torch.dtype) -> int:
    """The chunk, or what is enough for a short sequence; float32 takes half-size tiles."""
    chunk = min(chunk, 32) if dtype == torch.float32 else chunk
    length = 16
    while length < chunk and length < tokens:
        length *= 2
    return length


def _decays(dt: Tensor, A: Tensor, reset: Tensor | None, L: int) -> tuple[Tensor, Tensor]:
    """(dt in fp32 and the running sum of log2 decays in each chunk, (2, B, H, chunks·L); resets so far in each chunk,
    int32 (B, chunks·L), or empty without resets)."""
    batch, tokens, heads = dt.shape
    chunks = triton.cdiv(tokens, L)
    decays = dt.new_empty(2, batch, heads, chunks * L, dtype=torch.float32)
    documents = dt.new_empty((0,) if reset is None else (batch, chunks * L), dtype=torch.int32)
    bytes_, reset_sb, reset_st = _reset(reset, dt)
    prepare_kernel[(heads, batch, triton.cdiv(chunks, BLOCK))](
        dt, A, bytes_, decays[0], decays[1], documents,
        tokens, heads, chunks, *dt.stride(), reset_sb, reset_st,
        L=L, BLOCK=BLOCK, HAS_RESET=reset is not None,
    )  # fmt: skip
    return decays, documents


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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(y, final state in fp32; where `keep`, otherwise empty: state at each chunk's start in x's dtype
    (B, H, chunks, P, N), and the two tensors of `_decays`)."""
    batch, tokens, heads, width = x.shape
    groups, n = B.shape[2:]
    L = _length(chunk, tokens, x.dtype)
    y = x.new_empty(batch, tokens, heads, width)
    final = x.new_empty(batch, heads, width, n, dtype=torch.float32)
    starts = x.new_empty((batch, heads, triton.cdiv(tokens, L), width, n) if keep else (0,))
    block = min(width, 64)
    with _device(x):
        decays, documents = _decays(dt, A, reset, L)
        forward_kernel[(heads * (width // block), batch)](
            _tiles(x, L, block), decays[0], decays[1], documents, _tiles(B, L, n), _tiles(C, L, n), D,
            x if initial is None else initial.contiguous(),
            _tiles(y, L, block), final, _states(starts, block) if keep else starts,
            heads, heads // groups, triton.cdiv(tokens, L), 0,
            L=L, P=width, P_BLOCK=block, N=n,
            HAS_INITIAL=initial is not None, HAS_RESET=reset is not None, KEEP=keep,
            **_launch("forward", x.dtype, L, block, n),
        )  # fmt: skip
    if not keep:
        decays, documents = decays.new_empty(0), documents.new_empty(0)
    return y, final, starts, decays, documents


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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, tokens, heads, width = x.shape
    L = _length(chunk, tokens, x.dtype)
    chunks = (tokens + L - 1) // L
    n = B.shape[3]
    return (
        x.new_empty(batch, tokens, heads, width),
        x.new_empty(batch, heads, width, n, dtype=torch.float32),
        x.new_empty((batch, heads, chunks, width, n) if keep else (0,)),
        x.new_empty((2, batch, heads, chunks * L) if keep else (0,), dtype=torch.float32),
        x.new_empty((batch, chunks * L) if keep and reset is not None else (0,), dtype=torch.int32),
    )


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
    decays: Tensor,
    documents: Tensor,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, dt, A, B, C, D and the initial state; `starts` empty means that they are recomputed here."""
    batch, tokens, heads, width = x.shape
    groups, n = B.shape[2:]
    per_group = heads // groups
    L = _length(chunk, tokens, x.dtype)
    chunks = triton.cdiv(tokens, L)
    dinitial = x.new_empty(batch, heads, width, n, dtype=torch.float32)
    dends = x.new_empty(batch, heads, chunks, width, n)
    block = min(width, 64)

    def walk(u: Tensor, V: Tensor, edge: Tensor | None, states: Tensor, last: Tensor, reverse: bool) -> None:
        state_kernel[(heads * (width // block), batch)](
            _tiles(u, L, block), decays[0], decays[1], documents, _tiles(V, L, n),
            u if edge is None else edge.contiguous(), _states(states, block), last,
            heads, per_group, chunks,
            L=L, P=width, P_BLOCK=block, N=n,
            REVERSE=reverse, HAS_EDGE=edge is not None, HAS_RESET=reset is not None,
            **_launch("state", x.dtype, L, block, n),
        )  # fmt: skip

    choices = [s for s in range(1, per_group + 1) if per_group % s == 0]
    splits = next((s for s in choices if batch * chunks * groups * s >= PROGRAMS), per_group)
    parts = (splits, batch, tokens, groups, n)
    dB = x.new_empty(parts, dtype=x.dtype if splits == 1 else torch.float32)
    dC = torch.empty_like(dB)
    dx = x.new_empty(x.shape)
    ddt = x.new_empty(dt.shape, dtype=torch.float32)
    sums = x.new_empty(4, batch, heads, chunks * L, dtype=torch.float32)
    passing = x.new_empty(batch, heads, chunks, width, dtype=torch.float32)
    blocks = triton.cdiv(chunks, BLOCK)
    dA = x.new_empty(heads, batch * blocks, dtype=torch.float32)
    dD = torch.empty_like(dA)
    with _device(x):
        if starts.numel() == 0:
            decays, documents = _decays(dt, A, reset, L)
            starts = x.new_empty(batch, heads, chunks, width, n)
            walk(x, B, initial, starts, torch.empty_like(dinitial), reverse=False)
        walk(dy, C, dfinal, dends, dinitial, reverse=True)
        B_tiles, C_tiles = _tiles(B, L, n), _tiles(C, L, n)
        gradient_kernel[(chunks, batch, groups * splits)](
            _tiles(x, L, width), decays[0], decays[1], documents,
            B_tiles, C_tiles, _pairs(B_tiles), _pairs(C_tiles), D, _tiles(dy, L, width),
            _states(starts, width), _states(dends, width), _tiles(dx, L, width), dB, dC, sums, passing,
            tokens, heads, per_group, chunks, 0, dB.stride(0), sums.stride(0),
            L=L, P=width, N=n, HEADS=per_group // splits, SPLITS=splits, HAS_RESET=reset is not None,
            PAIRED=x.dtype == torch.bfloat16,
            **_launch("gradient", x.dtype, L, width, n),
        )  # fmt: skip
        bytes_, reset_sb, reset_st = _reset(reset, dt)
        decay_gradient_kernel[(heads, batch, blocks)](
            decays[0], decays[1], documents, A, bytes_, sums, passing, ddt, dA, dD,
            tokens, heads, chunks, sums.stride(0), reset_sb, reset_st,
            L=L, P=width, BLOCK=BLOCK, HAS_RESET=reset is not None,
        )  # fmt: skip
    if splits > 1:
        dB, dC = dB.sum(0).to(x.dtype), dC.sum(0).to(x.dtype)
    else:
        dB, dC = dB.squeeze(0), dC.squeeze(0)
    return dx, ddt.to(dt.dtype), dA.sum(1).to(A.dtype), dB, dC, dD.sum(1).to(D.dtype), dinitial


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
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    state = x.new_empty(x.shape[0], x.shape[2], x.shape[3], B.shape[3], dtype=torch.float32)
    like = [tensor.new_empty(tensor.shape) for tensor in (x, dt, A, B, C, D)]
    return like[0], like[1], like[2], like[3], like[4], like[5], state


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    *tensors, chunk, _ = inputs
    ctx.save_for_backward(*tensors, *output[2:])
    ctx.chunk = chunk
    ctx.set_materialize_grads(False)


def _gradients(ctx, dy, dfinal, *_) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
    x, dt, A, B, C, D, initial, reset, starts, decays, documents = ctx.saved_tensors
    if dy is None:
        dy = torch.zeros_like(x)
    *grads, dinitial = torch.ops.jepamba.ssd_backward(
        dy, dfinal, x, dt, A, B, C, D, initial, reset, starts, decays, documents, ctx.chunk
    )
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
    """(y_BTHP, final_state_BHPN in fp32); see `jepamba.ssd.ssd`. Differentiable in every float input, repeatable.

    x, B and C are all bfloat16 or all float32 (products keep full precision then), and may be slices of larger tensors.
    keep_states: the forward pass stores the state at each chunk's start for the backward pass (in x's dtype); otherwise
    the backward pass recomputes them. Raises `UserError` for sizes and dtypes that the kernels do not take.
    """
    _check(x_BTHP, dt_BTH, B_BTGN, C_BTGN, initial_state_BHPN, reset_BT, chunk)
    inputs = (x_BTHP, dt_BTH, A_H, B_BTGN, C_BTGN, D_H, initial_state_BHPN)
    keep = keep_states and torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
    y, final, *_ = torch.ops.jepamba.ssd_forward(*inputs, reset_BT, chunk, keep)
    return y, final
