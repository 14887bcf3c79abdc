"""Quantizers by name, and fake quantization: `decode(encode(w))` with the gradient of the identity.

Training therefore computes with exactly the weights that the artifact stores.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from jepamba.ops.dispatch import use_triton
from jepamba.quant.floats import FloatQuantizer, Fp8Quantizer
from jepamba.quant.integers import MAX_BITS, MIN_BITS, IntQuantizer
from jepamba.quant.protocol import Quantizer, rows

_QUANTIZERS: list[Quantizer] = [
    *map(IntQuantizer, range(MIN_BITS, MAX_BITS + 1)),
    Fp8Quantizer(True),
    Fp8Quantizer(False),
    FloatQuantizer(torch.bfloat16),
    FloatQuantizer(torch.float32),
]
_BY_NAME = {quantizer.name: quantizer for quantizer in _QUANTIZERS}


def quantizer_named(name: str) -> Quantizer:
    """Return the quantizer with this `name`, as an artifact's header has it. Raises `KeyError` for an unknown name."""
    return _BY_NAME[name]


class _StraightThrough(torch.autograd.Function):
    """Straight-through estimator (Bengio et al. 2013): the quantized value, with the gradient of the identity."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, quantizer: Quantizer) -> Tensor:
        return quantizer.decode(quantizer.encode(w), tuple(w.shape))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0], None


def fake_quantize(w: Tensor, quantizer: Quantizer) -> Tensor:
    """Quantize and decode `w` to fp32, with the gradient of the identity."""
    return cast(Tensor, _StraightThrough.apply(w, quantizer))  # type: ignore[no-untyped-call]


def fake_quantize_into(out: Tensor, w: Tensor, quantizer: Quantizer) -> None:
    """Write the fake-quantized `w` to `out`, of its shape, in the dtype of `out` and without a gradient.

    On a GPU, fp32 weights as integers, and in BF16, have kernels, which give the bits of `encode` and `decode`.
    """
    if use_triton(w) and w.dtype == torch.float32 and w.is_contiguous() and out.is_contiguous():
        from jepamba.ops.fake_quantize.triton import fake_quantize_absmax, fake_quantize_bf16

        out_RC, w_RC = out.view(rows(tuple(w.shape))), w.view(rows(tuple(w.shape)))
        match quantizer:
            case IntQuantizer():
                return fake_quantize_absmax(out_RC, w_RC, quantizer.q_max)
            case FloatQuantizer(torch.bfloat16):
                return fake_quantize_bf16(out_RC, w_RC)
    out.copy_(fake_quantize(w, quantizer))
