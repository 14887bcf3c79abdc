"""The sequence operator in Triton: `ssd_triton`, a custom operator with its own backward pass.

`triton_passes` has the two passes. Here they become an operator that torch.compile accepts, and an eager autograd
function without the dispatcher's overhead.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from jepamba.ops.ssd.triton_launch import check_inputs, chunk_length, is_supported
from jepamba.ops.ssd.triton_passes import run_backward, run_forward

__all__ = ["is_supported", "ssd_triton"]

_forward = torch.library.custom_op(
    "jepamba::ssd_forward",
    run_forward,
    mutates_args=(),
    # The schema has no dt_bias, because the operator's backward pass does not return its gradient.
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
    batch, tokens, heads, headdim = x.shape
    L = chunk_length(chunk_size, x, B.shape[3])
    chunks = (tokens + L - 1) // L
    n = B.shape[3]
    return (
        x.new_empty(batch, tokens, heads, headdim),
        x.new_empty(batch, heads, headdim, n, dtype=torch.float32),
        x.new_empty((batch, heads, chunks, headdim, n) if keep else (0,)),
        x.new_empty((2, batch, heads, chunks * L) if keep else (0,), dtype=torch.float32),
        x.new_empty((batch, chunks * L) if keep and reset is not None else (0,), dtype=torch.int32),
    )


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
    """Return the gradients of x, dt, A, B, C, D and the initial state as new tensors."""
    dx, ddt, dB, dC = (tensor.new_empty(tensor.shape) for tensor in (x, dt, B, C))
    saved = (starts, decays, documents, chunk_size)
    partials_K2H, dinitial = run_backward(dy, dfinal, x, dt, A, B, C, D, initial, reset, *saved, (dx, ddt, dB, dC))
    # A custom operator must return tensors that share no storage.
    dA, dD = (partials_K2H[:, k].sum(0).to(like.dtype) for k, like in enumerate((A, D)))
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
    """The same operator outside torch.compile, without the overhead of the dispatcher."""

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
    """Return (y_BTHP, final_state_BHPN in fp32); see `jepamba.ops.ssd.ssd`. Differentiable and deterministic.

    x, B and C are all bfloat16, or all float32 with full-precision products. They can be slices of larger tensors.

    Arguments: `keep_states`: store the state at each chunk's start, in the dtype of x, for the backward pass; otherwise
    the backward pass recomputes the states. Raises `UserError` for unsupported sizes and dtypes.
    """
    check_inputs(x_BTHP, dt_BTH, A_H, B_BTGN, C_BTGN, D_H, initial_state_BHPN, reset_BT, chunk_size)
    inputs = (x_BTHP, dt_BTH, A_H.contiguous(), B_BTGN, C_BTGN, D_H.contiguous(), initial_state_BHPN)
    keep = keep_states and torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
    eager = type(x_BTHP) in (Tensor, torch.nn.Parameter) and not torch.compiler.is_compiling()
    operator: Callable[..., tuple[Tensor, ...]] = _Eager.apply if eager else torch.ops.jepamba.ssd_forward
    y, final, *_ = operator(*inputs, reset_BT, chunk_size, keep)
    return y, final
