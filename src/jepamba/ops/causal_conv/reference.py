"""The causal convolution by its definition, one token and one tap at a time, in float64: the reference.

Legend: B batch, T time, C channels, W taps, W1 = W − 1.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def conv_silu_reference(
    x_BTC: Float[Tensor, "B T C"],
    history_BCW: Float[Tensor, "B C W1"] | None,
    kernel_CW: Float[Tensor, "C W"],
    bias_C: Float[Tensor, " C"],
    reset_BT: Bool[Tensor, "B T"] | None,
) -> tuple[Float[Tensor, "B T C"], Float[Tensor, "B C W1"]]:
    """Compute `conv_silu` by its definition. Differentiable in every float input."""
    batch, length, channels = x_BTC.shape
    taps = kernel_CW.shape[1]
    outputs, histories = [], []
    for b in range(batch):
        zeros_C = x_BTC.new_zeros(channels, dtype=torch.float64)
        # The previous inputs, oldest first.
        previous = [zeros_C] * (taps - 1)
        if history_BCW is not None:
            previous = list(history_BCW[b].double().unbind(1))
        for t in range(length):
            if reset_BT is not None and reset_BT[b, t]:
                previous = [zeros_C] * (taps - 1)
            window = [*previous, x_BTC[b, t].double()]
            y_C = bias_C.double()
            for k in range(taps):
                y_C = y_C + kernel_CW[:, k].double() * window[k]
            outputs.append(y_C / (1 + torch.exp(-y_C)))
            previous = window[1:]
        histories.append(torch.stack([*previous, zeros_C], dim=1)[:, : taps - 1])
    return torch.stack(outputs).view(batch, length, channels), torch.stack(histories)
