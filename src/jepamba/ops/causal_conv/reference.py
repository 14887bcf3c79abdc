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
    """`conv_silu` by its definition. Differentiable in every float input."""
    x_BTC, kernel_CW, bias_C = x_BTC.double(), kernel_CW.double(), bias_C.double()
    batch, length, channels = x_BTC.shape
    taps = kernel_CW.shape[1]
    # The inputs that the next token sees, the oldest first.
    seen = list(x_BTC.new_zeros(taps - 1, batch, channels))
    if history_BCW is not None:
        seen = list(history_BCW.double().unbind(2))
    outputs = []
    for t in range(length):
        if reset_BT is not None:
            kept_B1 = (~reset_BT[:, t, None]).double()
            seen = [input_BC * kept_B1 for input_BC in seen]
        window = [*seen, x_BTC[:, t]]
        y_BC = bias_C.expand(batch, channels)
        for k in range(taps):
            y_BC = y_BC + kernel_CW[:, k] * window[k]
        outputs.append(y_BC / (1 + torch.exp(-y_BC)))
        seen = window[1:]
    after_BCW = torch.stack(seen, dim=2) if seen else x_BTC.new_zeros(batch, channels, 0)
    return torch.stack(outputs, dim=1), after_BCW
