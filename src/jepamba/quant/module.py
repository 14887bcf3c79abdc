"""One weight from its first value to the artifact, and the cache of a step's quantized weights.

`QuantWeight`: `__init__` → `effective_weight` (fake quantization) → `export` → `load`.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from jepamba.quant.grids import fake_quantize
from jepamba.quant.protocol import Quantizer, Streams


class QuantWeight(nn.Module):
    """A master weight, the quantizer it is stored with, and the value that a pass must see of the two.

    Evaluation always sees the stored value, so whatever is scored is what the artifact holds. Training sees it while
    `fake_quantized` is set, and inside `CachedWeights` the cached copy of what it would have seen. After `load` the
    master is the stored value, and is used as it is: quantizing twice could move it.

    Arguments: `value`, the first master; `matrix`, whether it enters matrix products alone, so that a cached copy is in
    the compute dtype; `weigh_inputs`, whether the quantizer weighs each column's error by the layer's inputs.
    """

    input_power: Tensor | None
    """Mean square of each input (C,), as `record_inputs` found it last; a buffer."""

    def __init__(
        self, value: Tensor, quantizer: Quantizer, *, matrix: bool = False, weigh_inputs: bool = False
    ) -> None:
        super().__init__()
        self.master = nn.Parameter(value)
        self.quantizer = quantizer
        self.matrix = matrix
        self.fake_quantized = False
        self.loaded = False
        self.cached: Tensor | None = None
        self.register_buffer("input_power", torch.ones(value.shape[1]) if weigh_inputs else None)

    def effective_weight(self) -> Tensor:
        """The weight as this pass must see it, in fp32; a cached matrix in the compute dtype."""
        if self.training and self.cached is not None:
            return self.cached
        master = self.master.float()
        if self.loaded or (self.training and not self.fake_quantized):
            return master
        return fake_quantize(master, self.quantizer, self.input_power)

    def export(self) -> Streams:
        """The encoded streams that an artifact stores."""
        return self.quantizer.encode(self.master, self.input_power)

    def load(self, value: Tensor) -> None:
        """Take `value`, decoded from an artifact, as master and stored value in one."""
        self.master.data = value.to(device=self.master.device, dtype=torch.float32)
        self.loaded = True

    def record_inputs(self, x: Float[Tensor, "*batch C"]) -> None:
        """Calibrate: note the mean square of each input, the diagonal of the Hessian of ‖x Wᵀ‖² in a row of W, which
        weighs the errors of its columns (as in Frantar et al. 2022, without the off-diagonal)."""
        if self.input_power is not None:
            self.input_power.copy_(x.detach().float().square().flatten(0, -2).mean(0))


class CachedWeights:
    """The effective weights of one optimizer step, computed once for all its micro-batches.

    Call `compute`, then run the training passes inside `with cache as leaves:`. The passes read `leaves` and add their
    gradients there; on exit the masters have them, since the gradient of fake quantization is that of the identity.
    Gradients have the masters' dtype, whatever the compute dtype. The tensors, and their gradients, keep their
    addresses from step to step, as captured CUDA graphs need it.
    """

    def __init__(self, weights: Iterable[QuantWeight], dtype: torch.dtype) -> None:
        self.weights = list(weights)
        self.leaves = [_leaf(weight.master, dtype if weight.matrix else torch.float32) for weight in self.weights]

    @torch.no_grad()
    def compute(self) -> None:
        """Fill the cache from the masters. It takes and returns nothing, and can be captured as a CUDA graph."""
        for weight, leaf in zip(self.weights, self.leaves, strict=True):
            leaf.copy_(weight.effective_weight())

    def __enter__(self) -> list[Tensor]:
        for weight, leaf in zip(self.weights, self.leaves, strict=True):
            leaf.grad = weight.master.grad
            weight.cached = leaf
        return self.leaves

    def __exit__(self, *error: object) -> None:
        for weight, leaf in zip(self.weights, self.leaves, strict=True):
            weight.master.grad = leaf.grad
            weight.cached = None


def _leaf(master: Tensor, dtype: torch.dtype) -> Tensor:
    leaf = torch.empty_like(master, dtype=dtype).requires_grad_()
    # Micro-batches are summed in the master's precision.
    leaf.grad_dtype = master.dtype
    return leaf
