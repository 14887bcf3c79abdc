"""From the final latent to capped logits and their loss: four ways to tie the output to the embedding, and a soft cap.

Legend: D model width, E width of the features that meet the output matrix, V vocabulary, N tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from jepamba.config import Model, Quant
from jepamba.model.layers import QuantLinear, embedding_quantizer, vector_quantizer
from jepamba.ops.cross_entropy import Losses, capped_cross_entropy, softcap
from jepamba.quant import QuantWeight


class Head(nn.Module):
    """Logits of the next token. `tie`: 0 a matrix of its own; 1 the embedding, reached by a linear map d→e;
    2 the same with a learned V×e correction added; 3 the embedding, reached by Linear and GELU."""

    def __init__(self, config: Model, quant: Quant) -> None:
        super().__init__()
        self.tie, self.kind, self.cap = config.tie, config.softcap, config.cap
        if self.tie == 2:
            self.correction = QuantWeight(torch.zeros(config.vocab_size, config.embed_dim), embedding_quantizer(quant))
        self.vocab_bias = QuantWeight(torch.zeros(config.vocab_size), vector_quantizer(quant))
        if self.tie == 0:
            self.separate = QuantLinear(config.d_model, config.vocab_size, quant)
        # Tie mode 3 keeps its map at equal widths too: there it is linear and GELU, not a change of width.
        elif self.tie == 3 or config.embed_dim != config.d_model:
            self.embed_proj_rev = QuantLinear(config.d_model, config.embed_dim, quant)

    def features(self, h: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch E"]:
        """What is multiplied with the output matrix."""
        if hasattr(self, "embed_proj_rev"):
            h = self.embed_proj_rev(h)
        return F.gelu(h) if self.tie == 3 else h

    def matrix(self, embedding_VE: Float[Tensor, "V E0"]) -> Float[Tensor, "V E"]:
        """The output matrix, given the embedding's."""
        if self.tie == 0:
            return self.separate.weight.effective_weight()
        return embedding_VE + self.correction.effective_weight() if self.tie == 2 else embedding_VE

    def forward(self, h: Float[Tensor, "*batch D"], embedding_VE: Float[Tensor, "V E0"]) -> Float[Tensor, "*batch V"]:
        """Capped fp32 logits."""
        raw = F.linear(self.features(h), self.matrix(embedding_VE)).float() + self.vocab_bias.effective_weight()
        return softcap(raw, self.kind, self.cap)

    def loss(
        self,
        h_ND: Float[Tensor, "N D"],
        embedding_VE: Float[Tensor, "V E0"],
        targets_N: Int[Tensor, " N"],
        z_weight: float,
    ) -> Losses:
        """Mean losses over N tokens, without ever holding all N × V logits."""
        features_NE = self.features(h_ND)
        return capped_cross_entropy(
            features_NE,
            self.matrix(embedding_VE),
            self.vocab_bias.effective_weight(),
            targets_N,
            self.kind,
            self.cap,
            z_weight,
        )
