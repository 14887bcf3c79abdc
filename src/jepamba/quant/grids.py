"""Quantizers by name, and what training sees of one: `fake_quantize`, which is `decode(encode(w))` with the gradient
of the identity.

What training sees is therefore what the artifact holds, to the bit.
"""

from __future__ import annotations

import re
from typing import Any, cast, get_args

import torch
from torch import Tensor

from jepamba.quant.floats import FloatQuantizer, Fp8Quantizer
from jepamba.quant.integers import MAX_BITS, MIN_BITS, IntQuantizer, Scale
from jepamba.quant.protocol import Quantizer

_FLOATS: dict[str, Quantizer] = {
    grid.name: grid
    for grid in (Fp8Quantizer(True), Fp8Quantizer(False), FloatQuantizer(torch.bfloat16), FloatQuantizer(torch.float32))
}
_CLIPPED = "|".join(kind for kind in get_args(Scale) if kind != "absmax")
_INT = re.compile(rf"int([{MIN_BITS}-{MAX_BITS}])(?:-({_CLIPPED}))?(?:-g([1-9][0-9]{{0,5}}))?")


def quantizer_named(name: str) -> Quantizer:
    """The quantizer with this `name`, as written in an artifact's header. Raises `KeyError` for an unknown name."""
    match = _INT.fullmatch(name)
    if match is None:
        return _FLOATS[name]
    return IntQuantizer(int(match[1]), cast(Scale, match[2] or "absmax"), int(match[3] or 0))


class _StraightThrough(torch.autograd.Function):
    """Value of the quantizer's nearest point, gradient of the identity (Bengio et al. 2013).

    The identity holds for clipped values too: the clip is at a share of the row's own largest value and moves with the
    weights, so that a weight beyond it is not lost, and the gradient is what brings it back.
    """

    @staticmethod
    def forward(ctx: Any, w: Tensor, quantizer: Quantizer, importance_C: Tensor | None) -> Tensor:
        return quantizer.decode(quantizer.encode(w, importance_C), tuple(w.shape))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0], None, None


def fake_quantize(w: Tensor, quantizer: Quantizer, importance_C: Tensor | None = None) -> Tensor:
    """`w` as it will be stored and loaded, in fp32, differentiable as if nothing had been rounded."""
    return cast(Tensor, _StraightThrough.apply(w, quantizer, importance_C))  # type: ignore[no-untyped-call]
