"""The mixer between its two projections on a CPU: one C++ kernel forward, one backward (`kernels.cpp`).

It computes in fp32 inside, token by token, and reads and writes activations in their dtype. Backward keeps the rows of
the projection, y and the states at the start of each chunk, and recomputes everything else.

Legend: B batch, T time, S row of the projection's output (z, x, B, C, dt), I = d_inner (H heads × P), G groups,
N state, C = I + 2·G·N channels of the convolution, W taps, W1 = W − 1; K chunks.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from jepamba.ops.cpp import DTYPES, LANES, kernels_of, pointer, use_cpp
from jepamba.ops.mixer.sizes import MixerSizes
from jepamba.ops.norms import GATED_NORM_EPS

_CHUNK = 32
"""As in the kernels."""


class _Sizes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("batch", "tokens", "heads", "groups", "taps", "row")]


class _Weights(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("kernel_WC", "bias_C", "dt_bias_H", "A_H", "D_H", "norm_I")),
        ("eps", ctypes.c_float),
    ]


class _Before(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("history_BWC", "state_BHNP", "reset_BT")]


class _Gradients(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("kernel_BWC", "bias_BC", "dt_bias_BH", "A_BH", "D_BH", "norm_BI")]


def _kernels(sizes: MixerSizes) -> ctypes.CDLL | None:
    return kernels_of("mixer", P=sizes.headdim, N=sizes.d_state)


def is_supported(projected_BTS: Tensor, sizes: MixerSizes) -> bool:
    """Whether the kernels support this pass, dtype, device and size, and could be compiled."""
    fits = sizes.headdim % LANES == 0 and sizes.d_state % LANES == 0
    return torch.is_grad_enabled() and use_cpp(projected_BTS) and fits and _kernels(sizes) is not None


class _Call:
    """The arguments that both kernels share, from the tensor arguments of `CppMixer`; it keeps their tensors alive."""

    def __init__(self, inputs: Sequence[Any], sizes: MixerSizes) -> None:
        projected_BTS, kernel_CW, bias_C, dt_bias_H, A_log_H, D_H, norm_I, *before = inputs
        history_BCW, initial_BHPN, reset_BT = before
        batch, tokens, row = projected_BTS.shape
        self.A_H = -torch.exp(A_log_H)
        self.weights = [kernel_CW.T.contiguous(), bias_C.contiguous(), dt_bias_H, self.A_H, D_H, norm_I]
        self.before = [
            None if history_BCW is None else history_BCW.float().transpose(1, 2).contiguous(),
            None if initial_BHPN is None else initial_BHPN.float().transpose(2, 3).contiguous(),
            None if reset_BT is None else reset_BT.contiguous(),
        ]
        self.kernels, self.suffix = _kernels(sizes), DTYPES[projected_BTS.dtype]
        structures = (
            _Sizes(batch, tokens, sizes.heads, sizes.groups, kernel_CW.shape[1], row),
            _Weights(*map(pointer, self.weights), GATED_NORM_EPS),
            _Before(*map(pointer, self.before)),
        )
        self.arguments = [*map(ctypes.byref, structures), pointer(projected_BTS)]

    def __call__(self, name: str, *arguments: Any) -> None:
        getattr(self.kernels, f"mixer_{name}_{self.suffix}")(*self.arguments, *arguments)


class CppMixer(torch.autograd.Function):
    """Returns the gated and normed output (B, T, I) and the final state (B, H, P, N) in fp32.

    Arguments: those of `FusedMixer`, without `needs_grad`. Weights are fp32.
    """

    @staticmethod
    def forward(
        ctx: Any,
        projected_BTS: Tensor,
        kernel_CW: Tensor,
        bias_C: Tensor,
        dt_bias_H: Tensor,
        A_log_H: Tensor,
        D_H: Tensor,
        norm_I: Tensor,
        history_BCW: Tensor | None,
        initial_BHPN: Tensor | None,
        reset_BT: Tensor | None,
        sizes: MixerSizes,
    ) -> tuple[Tensor, Tensor]:
        inputs = (
            projected_BTS.contiguous(), kernel_CW, bias_C, dt_bias_H, A_log_H, D_H, norm_I, history_BCW, initial_BHPN,
            reset_BT,
        )  # fmt: skip
        call = _Call(inputs, sizes)
        batch, tokens, _ = projected_BTS.shape
        state = (sizes.heads, sizes.d_state, sizes.headdim)
        out_BTI = projected_BTS.new_empty(batch, tokens, sizes.inner)
        y_BTI = torch.empty_like(out_BTI, dtype=torch.float32)
        starts_BKHNP, final_BHNP = y_BTI.new_empty(batch, -(-tokens // _CHUNK), *state), y_BTI.new_empty(batch, *state)
        call("forward", *map(pointer, (out_BTI, y_BTI, starts_BKHNP, final_BHNP)))
        ctx.save_for_backward(*inputs, y_BTI, starts_BKHNP)
        ctx.sizes = sizes
        ctx.set_materialize_grads(False)
        return out_BTI, final_BHNP.transpose(2, 3)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        *inputs, y_BTI, starts_BKHNP = ctx.saved_tensors
        sizes: MixerSizes = ctx.sizes
        dout_BTI, dfinal_BHPN = grads
        projected_BTS, kernel_CW = inputs[0], inputs[1]
        dout_BTI = torch.zeros_like(y_BTI) if dout_BTI is None else dout_BTI
        dout_BTI = dout_BTI.to(projected_BTS.dtype).contiguous()
        dfinal_BHNP = None if dfinal_BHPN is None else dfinal_BHPN.transpose(2, 3).contiguous()
        dprojected_BTS = torch.empty_like(projected_BTS)
        batch, heads = len(projected_BTS), sizes.heads
        shapes = [(kernel_CW.shape[1], sizes.channels), (sizes.channels,), *[(heads,)] * 3, (sizes.inner,)]
        # Of each sequence: their sum does not depend on the number of threads.
        sums = [y_BTI.new_zeros(batch, *shape) for shape in shapes]
        call = _Call(inputs, sizes)
        pointers = map(pointer, (y_BTI, starts_BKHNP, dout_BTI, dfinal_BHNP, dprojected_BTS))
        call("backward", *pointers, ctypes.byref(_Gradients(*map(pointer, sums))))
        dkernel_WC, dbias_C, ddt_bias_H, dA_H, dD_H, dnorm_I = (value.sum(0) for value in sums)
        return (
            dprojected_BTS, dkernel_WC.T.contiguous(), dbias_C, ddt_bias_H, dA_H * call.A_H, dD_H, dnorm_I,
            None, None, None, None,
        )  # fmt: skip
