"""Layers of a block: the quantized linear layer, the choice of quantizers, the MLP.

Legend: B batch, T time, D model width, M hidden width of an MLP.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from jepamba.config import Model, Quant
from jepamba.ops.dispatch import use_triton
from jepamba.ops.linear.pytorch import linear_torch, scales_weights
from jepamba.ops.mlp import fuses_mlp, mlp_residual
from jepamba.ops.norms import relu2_norm, rms
from jepamba.quant import FloatQuantizer, Fp8Quantizer, IntQuantizer, Quantizer, QuantWeight


class QuantLinear(nn.Module):
    """y = x Wᵀ without bias. W (outputs, inputs) is a `QuantWeight`, initially zero or PyTorch's default."""

    def __init__(self, inputs: int, outputs: int, quant: Quant, *, zero: bool = False) -> None:
        super().__init__()
        value = torch.zeros(outputs, inputs)
        if not zero:
            # PyTorch's default for nn.Linear: uniform within 1/sqrt(inputs).
            nn.init.uniform_(value, -(inputs**-0.5), inputs**-0.5)
        quantizer = matrix_quantizer((outputs, inputs), quant)
        self.weight = QuantWeight(value, quantizer, matrix=True)

    def forward(
        self, x: Float[Tensor, "*batch inputs"], scale: Float[Tensor, " outputs"] | None = None, rows: int = 0
    ) -> Float[Tensor, "*batch padded"]:
        """Return scale · (x Wᵀ), padded with zeros to `rows` outputs if `rows` is larger."""
        w = self.weight.effective_weight()
        cached = self.training and self.weight.cached is not None
        if cached and use_triton(x) and x.dtype == w.dtype and (scale is None or scales_weights(x, w)):
            from jepamba.ops.linear.triton import cached_linear

            return cached_linear(x, w, scale, rows)
        return linear_torch(x, w, scale, rows)


def matrix_quantizer(shape: tuple[int, int], quant: Quant) -> Quantizer:
    """Quantizer of a weight matrix: integers if it has at least `quant.large` values, else FP8."""
    large = not quant.exact and shape[0] * shape[1] >= quant.large
    return IntQuantizer(quant.bits) if large else small_quantizer(quant)


def embedding_quantizer(quant: Quant) -> Quantizer:
    """Quantizer of the embedding and the tie correction: FP8 or integers."""
    if quant.exact or quant.embedding == "fp8":
        return small_quantizer(quant)
    return IntQuantizer(int(quant.embedding.removeprefix("int")))


def small_quantizer(quant: Quant) -> Quantizer:
    """Quantizer of convolutions and small matrices: FP8."""
    return exact_quantizer() if quant.exact else Fp8Quantizer(scaled=quant.fp8_scale == "row")


def vector_quantizer(quant: Quant) -> Quantizer:
    """Quantizer of biases, norm weights and residual scales: BF16, or 8 bits with a scale."""
    if quant.exact:
        return exact_quantizer()
    scaled: dict[str, Quantizer] = {"fp8-row": Fp8Quantizer(scaled=True), "int8": IntQuantizer(8)}
    return scaled.get(quant.vectors, FloatQuantizer(torch.bfloat16))


def mix_quantizer(quant: Quant) -> Quantizer:
    """Quantizer of residual mixes and U-Net skips: that of vectors, or unscaled FP8 (docs/defects.md, 8)."""
    return Fp8Quantizer(scaled=False) if quant.vectors == "fp8" and not quant.exact else vector_quantizer(quant)


def exact_quantizer() -> Quantizer:
    """Quantizer of A_log, dt_bias and D: fp32, for a few hundred values in total."""
    return FloatQuantizer(torch.float32)


class Mlp(nn.Module):
    """down(rms(relu(up x)²)), or down(rms(silu(gate x) · up x)). `down` is initially zero, and so is the output."""

    def __init__(self, config: Model, quant: Quant) -> None:
        super().__init__()
        self.gated = config.mlp == "swiglu"
        self.up = QuantLinear(config.d_model, config.d_intermediate, quant)
        if self.gated:
            self.gate = QuantLinear(config.d_model, config.d_intermediate, quant)
        self.down = QuantLinear(config.d_intermediate, config.d_model, quant, zero=True)

    def forward(
        self, x_BTD: Float[Tensor, "B T D"], scale_D: Float[Tensor, " D"], residual_BTD: Float[Tensor, "B T D"]
    ) -> Float[Tensor, "B T D"]:
        """Return the residual stream plus `scale` times the output of the MLP for `x`."""
        up, down = self.up.weight.cached, self.down.weight.cached
        fused = self.training and not self.gated
        if fused and up is not None and down is not None and fuses_mlp(x_BTD, up, down):
            return mlp_residual(residual_BTD, x_BTD, up, down, scale_D)
        up_BTM = self.up(x_BTD)
        hidden_BTM = rms(F.silu(self.gate(x_BTD)) * up_BTM) if self.gated else relu2_norm(up_BTM)
        branch_BTD: Tensor = self.down(hidden_BTM, scale_D)
        return residual_BTD + branch_BTD
