"""The output head: soft-capped logits and their loss, with four ways to tie the output matrix to the embedding.

Legend: D model width, E width of the features, V vocabulary, N tokens; E0 width of the embedding.
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


class OutputHead(nn.Module):
    """Logits of the next token from the final latent.

    The output matrix depends on `tie`. 0: a separate matrix. 1: the embedding, after a linear projection d → e of the
    latent. 2: the same, plus a learned V × e correction. 3: the embedding, after Linear and GELU.
    """

    def __init__(self, config: Model, quant: Quant) -> None:
        super().__init__()
        self.tie, self.kind, self.cap = config.tie, config.softcap, config.cap
        if self.tie == 2:
            self.correction = QuantWeight(torch.zeros(config.vocab_size, config.embed_dim), embedding_quantizer(quant))
        self.vocab_bias = QuantWeight(torch.zeros(config.vocab_size), vector_quantizer(quant))
        if self.tie == 0:
            self.separate = QuantLinear(config.d_model, config.vocab_size, quant)
        # Tie mode 3 always has the Linear, even if both widths are equal.
        elif self.tie == 3 or config.embed_dim != config.d_model:
            self.embed_proj_rev = QuantLinear(config.d_model, config.embed_dim, quant)

    def features(self, h: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch E"]:
        """Return the features, the input of the output matrix."""
        if hasattr(self, "embed_proj_rev"):
            h = self.embed_proj_rev(h)
        return F.gelu(h) if self.tie == 3 else h

    def matrix(self, embedding_VE: Float[Tensor, "V E0"]) -> Float[Tensor, "V E"]:
        """Return the output matrix, from the embedding if tied."""
        if self.tie == 0:
            return self.separate.weight.effective_weight()
        return embedding_VE + self.correction.effective_weight() if self.tie == 2 else embedding_VE

    def forward(self, h: Float[Tensor, "*batch D"], embedding_VE: Float[Tensor, "V E0"]) -> Float[Tensor, "*batch V"]:
        """Return soft-capped fp32 logits."""
        logits = F.linear(self.features(h), self.matrix(embedding_VE)).float() + self.vocab_bias.effective_weight()
        return softcap(logits, self.kind, self.cap)

    def loss(
        self,
        h_ND: Float[Tensor, "N D"],
        embedding_VE: Float[Tensor, "V E0"],
        targets_N: Int[Tensor, " N"],
        z_weight: float,
    ) -> Losses:
        """Return the mean losses over N tokens, without all N × V logits in memory at once."""
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
