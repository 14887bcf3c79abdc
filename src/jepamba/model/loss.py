"""Soft cap, cross-entropy and z-loss in one pass over the vocabulary, a slice of tokens at a time.

Legend: N tokens (n of them in a slice), E feature width, V vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

SLICE_VALUES = {"cpu": 1 << 20, "cuda": 1 << 26}
"""Logits held at once: few enough to stay in a CPU's cache, enough to fill a GPU."""


def softcap(logits: Tensor, kind: str, cap: float) -> Tensor:
    """`logits` squeezed into ±cap: by cap·tanh(logits/cap), by its degree-5 polynomial stand-in, or not at all.

    The polynomial is u·(1 − u²/3 + u⁴/15) with u = clamp(logits/cap, ±2), its value clamped to ±1 (spec section 1).
    """
    if kind == "off":
        return logits
    if kind == "tanh":
        return cap * torch.tanh(logits / cap)
    u = (logits / cap).clamp(-2.0, 2.0)
    square = u * u
    return cap * (u * (1.0 - square / 3.0 + square * square / 15.0)).clamp(-1.0, 1.0)


def _cap_in_place(raw: Tensor, kind: str, cap: float) -> tuple[Tensor, Tensor | None]:
    """(softcap(raw), its slope, or None for 1 everywhere); overwrites `raw`.

    The same function as `softcap`, written in place: these passes over the vocabulary are most of what a small model
    does besides matrix products. The slope is 0 where the polynomial's value is clamped.
    """
    if kind == "off":
        return raw, None
    if kind == "tanh":
        unit = raw.div_(cap).tanh_()
        return unit * cap, unit.square_().neg_().add_(1.0)
    u = raw.div_(cap).clamp_(-2.0, 2.0)
    square = u * u
    slope = (square / 3.0).sub_(1.0).mul_(square).add_(1.0)
    unit = square.div(15.0).sub_(1.0 / 3.0).mul_(square).add_(1.0).mul_(u)
    slope.mul_(unit.abs() < 1.0)
    return unit.clamp_(-1.0, 1.0).mul_(cap), slope


class Losses(NamedTuple):
    """Means over tokens. Only `total` carries a gradient."""

    total: Tensor
    """ce + z_weight · z."""
    ce: Tensor
    """Cross-entropy, nats per token."""
    z: Tensor
    """Squared logsumexp."""


class _CappedCrossEntropy(torch.autograd.Function):
    """Losses and, in the same pass over the logits, their gradients: logits are made once and never stored."""

    @staticmethod
    def forward(
        ctx: Any,
        features_NE: Tensor,
        matrix_VE: Tensor,
        bias_V: Tensor,
        targets_N: Tensor,
        kind: str,
        cap: float,
        z_weight: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        count, vocab = len(targets_N), len(matrix_VE)
        learning = any(ctx.needs_input_grad)
        same = features_NE.dtype == matrix_VE.dtype
        matrix = matrix_VE.to(features_NE.dtype)
        ce = bias_V.new_zeros((), dtype=torch.float32)
        z = torch.zeros_like(ce)
        grad_features = torch.empty_like(features_NE)
        grad_matrix = torch.zeros_like(matrix_VE)
        grad_bias = torch.zeros_like(bias_V)
        rows = max(1, SLICE_VALUES[features_NE.device.type] // vocab)
        for start in range(0, count, rows):
            features_nE, targets_n1 = features_NE[start : start + rows], targets_N[start : start + rows].unsqueeze(1)
            raw_nV = (features_nE @ matrix.T).float().add_(bias_V)
            logits_nV, slope_nV = _cap_in_place(raw_nV, kind, cap)
            lse_n1 = logits_nV.logsumexp(1, keepdim=True)
            ce += (lse_n1 - logits_nV.gather(1, targets_n1)).sum()
            z += lse_n1.square().sum()
            if not learning:
                continue
            # d ce = softmax − onehot;  d lse² = 2·lse·softmax.
            grad_nV = logits_nV.sub_(lse_n1).exp_().mul_((1.0 + 2.0 * z_weight * lse_n1) / count)
            grad_nV.scatter_add_(1, targets_n1, torch.full_like(lse_n1, -1.0 / count))
            if slope_nV is not None:
                grad_nV.mul_(slope_nV)
            grad_bias += grad_nV.sum(0)
            grad_nV = grad_nV.to(features_NE.dtype)
            torch.mm(grad_nV, matrix, out=grad_features[start : start + rows])
            grad_matrix.addmm_(grad_nV.T, features_nE) if same else grad_matrix.add_(grad_nV.T @ features_nE)
        ce, z = ce / count, z / count
        ctx.save_for_backward(grad_features, grad_matrix, grad_bias)
        ctx.mark_non_differentiable(ce, z)
        return ce + z_weight * z, ce, z

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return *(grads[0] * saved for saved in ctx.saved_tensors), None, None, None, None


def capped_cross_entropy(
    features_NE: Float[Tensor, "N E"],
    matrix_VE: Float[Tensor, "V E"],
    bias_V: Float[Tensor, " V"],
    targets_N: Int[Tensor, " N"],
    kind: str,
    cap: float,
    z_weight: float,
) -> Losses:
    """Mean cross-entropy and squared logsumexp of softcap(features · matrixᵀ + bias), in fp32.

    Matrix products run in the dtype of `features`; everything over the vocabulary is fp32. The gradient is computed
    in the forward pass, where the logits are at hand.
    """
    return Losses(
        *cast(
            tuple[Tensor, Tensor, Tensor],
            _CappedCrossEntropy.apply(  # type: ignore[no-untyped-call]
                features_NE, matrix_VE, bias_V, targets_N, kind, cap, z_weight
            ),
        )
    )
