"""Operators of the latent predictor besides its matrix products: plain PyTorch, or one Triton kernel each.

Legend: B batch, T time, E latent size, M hidden size of the predictor.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from jepamba.ops.dispatch import use_triton
from jepamba.ops.predictor.pytorch import bias_gelu_torch, shifted_error_torch

__all__ = ["bias_gelu", "shifted_error"]


def bias_gelu(u: Float[Tensor, "*batch M"], bias: Float[Tensor, " M"]) -> Float[Tensor, "*batch M"]:
    """Return gelu(u + bias) with the exact GELU."""
    if use_triton(u):
        from jepamba.ops.predictor.triton import BiasGelu

        out: Tensor = BiasGelu.apply(u, bias)  # type: ignore[no-untyped-call]
        return out
    return bias_gelu_torch(u, bias)


def shifted_error(
    prediction_BTE: Float[Tensor, "B T E"], target_BTE: Float[Tensor, "B T E"], weight_BT: Float[Tensor, "B T"], k: int
) -> tuple[Float[Tensor, ""], Float[Tensor, "B T E"], Float[Tensor, "B T E"]]:
    """Return (Σ_{b,t} weight · |prediction_t − target_{t+k}|² in fp32, prediction, target).

    k can be 0. The weight of the last k tokens of each sequence must be 0. Prediction and target are returned
    unchanged. Later layers read these outputs, so that the backward pass of this function adds all their gradients in
    one kernel.
    """
    if use_triton(prediction_BTE):
        from jepamba.ops.predictor.triton import ShiftedError

        three: tuple[Tensor, Tensor, Tensor] = ShiftedError.apply(  # type: ignore[no-untyped-call]
            prediction_BTE, target_BTE.to(prediction_BTE.dtype), weight_BT, k
        )
        return three
    return shifted_error_torch(prediction_BTE, target_BTE, weight_BT, k)
