"""The target encoder: an exponential moving average of the encoder, as in BYOL (arXiv 2006.07733) and I-JEPA (arXiv
2301.08243).

Legend: B batch, T time, E latent dimension.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from jepamba.config import Jepa
from jepamba.jepa.heads import JepaHeads
from jepamba.model import LanguageModel


class TargetEncoder(nn.Module):
    """The average of the model and the projector over the steps, in fp32. Its latents are the prediction targets.

    The model's weights are averaged before they are rounded, and the average is not rounded.
    """

    def __init__(self, config: Jepa, model: LanguageModel, heads: JepaHeads) -> None:
        super().__init__()
        self.config = config
        self.model = deepcopy(model).float()
        self.model.set_fake_quantization(False)
        self.projector = deepcopy(heads.projector)
        self.requires_grad_(False)

    @torch.no_grad()
    def latents(
        self, tokens_BT: Int[Tensor, "B T"], reset_BT: Bool[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B T E"]:
        """Return z of the tokens, without gradients. Every window starts in the empty state."""
        activations, _ = self.model.activations(tokens_BT, reset_BT)
        z_BTE: Tensor = self.projector(activations.after(self.config.layer))
        return z_BTE

    @torch.no_grad()
    def update(self, model: LanguageModel, heads: JepaHeads, decay: float) -> None:
        """Average the weights: decay · average + (1 − decay) · weights. With `decay` 0 copy them."""
        own: list[Tensor] = [*self.model.parameters(), *self.projector.parameters()]
        weights = [*model.parameters(), *heads.projector.parameters()]
        torch._foreach_lerp_(own, [weight.float() for weight in weights], 1.0 - decay)
