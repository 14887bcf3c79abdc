"""A weight with its quantizer, and the cache of the quantized weights of a step.

Life cycle of a `QuantWeight`: `__init__`, `effective_weight` (fake quantization), `export`, `load`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from jepamba.quant.protocol import Quantizer, Streams
from jepamba.quant.quantizers import fake_quantize, fake_quantize_into


class QuantWeight(nn.Module):
    """A master weight and its quantizer.

    Evaluation always uses the quantized value, so scores are those of the artifact. Training uses it if
    `fake_quantized` is set, and inside `CachedWeights` a cached copy. After `load` the master is the decoded value and
    is not quantized again, which could change it.

    Arguments:
        value: initial master weight.
        quantizer: quantizer for training and export.
        matrix: whether matrix products alone use the weight, so that its cached copy has the compute dtype.
    """

    def __init__(self, value: Tensor, quantizer: Quantizer, *, matrix: bool = False) -> None:
        super().__init__()
        self.master = nn.Parameter(value)
        self.quantizer = quantizer
        self.matrix = matrix
        self.fake_quantized = False
        self.loaded = False
        self.cached: Tensor | None = None

    def effective_weight(self) -> Tensor:
        """Return the weight for this pass, in fp32; a cached matrix is in the compute dtype."""
        if self.training and self.cached is not None:
            return self.cached
        master = self.master.float()
        return fake_quantize(master, self.quantizer) if self.quantizes else master

    @property
    def quantizes(self) -> bool:
        """Whether passes use the quantized master, not the master itself."""
        return not self.loaded and (self.fake_quantized or not self.training)

    def export(self) -> Streams:
        """Encode the master as the streams of an artifact."""
        return self.quantizer.encode(self.master)

    def load(self, value: Tensor) -> None:
        """Set the master to `value`, decoded from an artifact, and use it without further quantization.

        A weight on the meta device, which has no values, gets the device of `value`.
        """
        if self.master.is_meta:
            self.master = nn.Parameter(value.float())
        else:
            self.master.data = value.to(device=self.master.device, dtype=torch.float32)
        self.loaded = True


class CachedWeights:
    """Cache of the effective weights of one optimizer step, computed once for all its micro-batches.

    Call `compute`, then run the training passes inside `with cache as leaves:`. The passes accumulate their gradients
    in `leaves`, and the exit moves them to the masters, since fake quantization has the gradient of the identity.
    Gradients have the dtype of the masters. CUDA graphs require that tensors and gradients keep their addresses.
    """

    def __init__(self, weights: Iterable[QuantWeight], dtype: torch.dtype) -> None:
        self.weights = list(weights)
        self.masters = [weight.master for weight in self.weights]
        self.leaves = [_leaf(weight.master, dtype if weight.matrix else torch.float32) for weight in self.weights]

    @torch.no_grad()
    def compute(self) -> None:
        """Fill the cache from the masters. It can be captured as a CUDA graph."""
        # Tensors of one dtype are copied together, with one kernel for many of them.
        copies = defaultdict[torch.dtype, tuple[list[Tensor], list[Tensor]]](lambda: ([], []))
        for weight, leaf in zip(self.weights, self.leaves, strict=True):
            if weight.quantizes:
                fake_quantize_into(leaf, weight.master, weight.quantizer)
            else:
                for tensors, value in zip(copies[leaf.dtype], (leaf, weight.master), strict=True):
                    tensors.append(value)
        for leaves, masters in copies.values():
            torch._foreach_copy_(leaves, masters)

    def __enter__(self) -> list[Tensor]:
        for weight, master, leaf in zip(self.weights, self.masters, self.leaves, strict=True):
            leaf.grad = master.grad
            weight.cached = leaf
        return self.leaves

    def __exit__(self, *error: object) -> None:
        for weight, master, leaf in zip(self.weights, self.masters, self.leaves, strict=True):
            master.grad = leaf.grad
            weight.cached = None


def _leaf(master: Tensor, dtype: torch.dtype) -> Tensor:
    leaf = torch.empty_like(master, dtype=dtype).requires_grad_()
    # Gradients of micro-batches accumulate in the master's precision.
    leaf.grad_dtype = master.dtype
    return leaf
