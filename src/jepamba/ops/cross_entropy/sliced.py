"""Soft cap, cross-entropy and z-loss in one pass over the vocabulary, for one slice of tokens at a time.

Legend: N tokens (n of them in a slice), E features, V vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from jepamba.ops.cross_entropy.rows import row_losses
from jepamba.ops.linear.products import product_fp32

SLICE_VALUES = {"cpu": 1 << 22, "cuda": 1 << 26}
"""Logits of a slice. They fit in the shared cache of a CPU, or fill a GPU."""


class Losses(NamedTuple):
    """Means over tokens. Only `total` carries a gradient."""

    total: Tensor
    """ce + z_weight · z."""
    ce: Tensor
    """Cross-entropy, nats per token."""
    z: Tensor
    """Squared logsumexp."""


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b. On a GPU, bf16 factors give an fp32 product without rounding to bf16."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    elif total.is_cuda and total.dtype == torch.float32:
        total.add_(product_fp32(a, b))
    else:
        total.add_(a @ b)


class _CappedCrossEntropy(torch.autograd.Function):
    """Computes the losses and, in the same pass, their gradients, so that the logits are not stored."""

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
        needs_grad: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        count, vocab = len(targets_N), len(matrix_VE)
        matrix = matrix_VE.to(features_NE.dtype)
        ce = bias_V.new_zeros((), dtype=torch.float32)
        z = torch.zeros_like(ce)
        grad_features = torch.empty_like(features_NE)
        # Accumulated over slices in fp32 or wider.
        grad_matrix = torch.zeros_like(matrix_VE, dtype=torch.promote_types(matrix_VE.dtype, torch.float32))
        grad_bias = torch.zeros_like(bias_V)
        rows = max(1, SLICE_VALUES[features_NE.device.type] // vocab)
        for start in range(0, count, rows):
            features_nE, targets_n = features_NE[start : start + rows], targets_N[start : start + rows]
            losses = row_losses(
                features_nE @ matrix.T,
                bias_V,
                targets_n,
                kind,
                cap,
                z_weight=z_weight,
                scale=1.0 / count if needs_grad else None,
            )
            ce += losses.ce_n.sum()
            z += losses.lse_n.square().sum()
            if losses.grad_nV is None or losses.grad_bias_V is None:
                continue
            grad_bias += losses.grad_bias_V
            grad_nV = losses.grad_nV.to(features_NE.dtype)
            torch.mm(grad_nV, matrix, out=grad_features[start : start + rows])
            _add_product(grad_matrix, grad_nV.T, features_nE)
        ce, z = ce / count, z / count
        ctx.save_for_backward(grad_features, grad_matrix, grad_bias)
        ctx.mark_non_differentiable(ce, z)
        return ce + z_weight * z, ce, z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        return *(grads[0] * saved for saved in ctx.saved_tensors), None, None, None, None, None


def capped_cross_entropy(
    features_NE: Float[Tensor, "N E"],
    matrix_VE: Float[Tensor, "V E"],
    bias_V: Float[Tensor, " V"],
    targets_N: Int[Tensor, " N"],
    kind: str,
    cap: float,
    z_weight: float,
) -> Losses:
    """Return the mean cross-entropy and squared logsumexp of softcap(features · matrixᵀ + bias), in fp32.

    Matrix products use the dtype of `features`; operations over the vocabulary are fp32. The forward pass also computes
    the gradient, because it has the logits.
    """
    return Losses(
        *cast(
            tuple[Tensor, Tensor, Tensor],
            _CappedCrossEntropy.apply(  # type: ignore[no-untyped-call]
                features_NE, matrix_VE, bias_V, targets_N, kind, cap, z_weight, torch.is_grad_enabled()
            ),
        )
    )
