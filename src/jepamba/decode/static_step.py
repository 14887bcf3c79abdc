"""The recurrent step of many streams on tensors at fixed addresses, so that it can be captured as a CUDA graph.

Legend: B streams, V vocabulary.
"""

from __future__ import annotations

import torch

from jepamba.evaluate.stored import stored
from jepamba.model import LanguageModel, State


class StaticStep:
    """Feeds `tokens_B` to the model and writes `logits_BV`; the state is carried in place.

    Arguments: `model`; `state`, where the streams stand, copied.
    """

    def __init__(self, model: LanguageModel, state: State) -> None:
        self.model = model
        self.state: State = [type(layer)(*(value.clone() for value in layer)) for layer in state]
        first = self.state[0][0]
        streams, device = len(first), first.device
        self.tokens_B = torch.zeros(streams, dtype=torch.int64, device=device)
        self.reset_B = torch.zeros(streams, dtype=torch.bool, device=device)
        """Streams whose state is reset before their token, which starts a document."""
        self.logits_BV = torch.zeros(streams, model.config.vocab_size, device=device)
        self._weights: list[torch.Tensor] = []

    def __call__(self) -> None:
        """Run one step."""
        with stored(self.model):
            # A graph reads the quantized weights at these addresses after this context has restored the masters.
            self._weights = [weight.master.data for weight in self.model.quant_weights().values()]
            h_B1D, state = self.model(self.tokens_B.unsqueeze(1), self.reset_B.unsqueeze(1), self.state)
            self.logits_BV.copy_(self.model.logits(h_B1D[:, 0]))
            torch._foreach_copy_([x for layer in self.state for x in layer], [x for layer in state for x in layer])
