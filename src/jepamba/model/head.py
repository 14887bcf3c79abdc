"""From the final latent to capped logits: four ways to tie the output to the embedding, and the soft cap.

Legend: D model width, E embedding width, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from jepamba.config import Model, Quant
from jepamba.model.layers import Gridded, Linear, small_grid, vector_grid


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


class Head(Gridded):
    """Logits of the next token. `tie`: 0 a matrix of its own; 1 the embedding, reached by a linear map d→e;
    2 the same with a learned V×e correction added; 3 the embedding, reached by Linear and GELU."""

    def __init__(self, config: Model, quant: Quant) -> None:
        super().__init__()
        self.tie, self.kind, self.cap = config.tie, config.softcap, config.cap
        if self.tie == 0:
            self.separate = Linear(config.dim, config.vocab_size, quant)
        else:
            # Tie mode 3 keeps its map at equal widths too: there it is Linear and GELU, not a change of width.
            if self.tie == 3 or config.embed_dim != config.dim:
                self.embed_proj_rev = Linear(config.dim, config.embed_dim, quant)
            if self.tie == 2:
                correction = torch.zeros(config.vocab_size, config.embed_dim)
                self.add("correction", correction, small_grid(quant))
        self.add("vocab_bias", torch.zeros(config.vocab_size), vector_grid())

    def forward(self, h: Float[Tensor, "*batch D"], embedding_VE: Float[Tensor, "V E"]) -> Float[Tensor, "*batch V"]:
        """Capped fp32 logits."""
        bias_V = self.weight("vocab_bias")
        if self.tie == 0:
            return softcap((self.separate(h) + bias_V).float(), self.kind, self.cap)
        if hasattr(self, "embed_proj_rev"):
            h = self.embed_proj_rev(h)
        if self.tie == 3:
            h = F.gelu(h)
        output_VE = embedding_VE + self.weight("correction") if self.tie == 2 else embedding_VE
        return softcap((F.linear(h, output_VE) + bias_V).float(), self.kind, self.cap)
