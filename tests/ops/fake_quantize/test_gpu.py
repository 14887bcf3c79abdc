"""Fake quantization on a GPU: the bits of the plain path there and on a CPU, in fp32 and bfloat16, in a graph."""

from __future__ import annotations

import pytest
import torch

from jepamba.config import Model, Quant
from jepamba.model import LanguageModel
from jepamba.ops.dispatch import use_kernels
from jepamba.quant import quantizer_named
from needs_gpus import needs_gpus
from ops.fake_quantize.cases import QUANTIZERS, differences, different, fused, hard_weights, plain

pytestmark = [
    *needs_gpus(),
    # Warnings of the compiler's own making are not this package's.
    pytest.mark.filterwarnings("default"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", QUANTIZERS)
def test_the_bits_of_the_quantizer_on_both_devices(name: str, dtype: torch.dtype) -> None:
    for w in (
        hard_weights(),
        hard_weights(640),
        0.02 * torch.randn(1418, 640),
        torch.randn(336, 1600),
        torch.randn(9000),
    ):
        assert differences(w.cuda(), name, dtype) == 0
        quantizer = quantizer_named(name)
        assert different(fused(w.cuda(), quantizer, dtype).cpu(), plain(w, quantizer, dtype)) == 0


@pytest.mark.parametrize("quant", [Quant(), Quant(embedding="int6", vectors="int8")], ids=str)
def test_a_captured_cache_follows_the_masters(quant: Quant) -> None:
    model = LanguageModel(Model(vocab_size=1000, n_layer=2), quant).cuda().train()
    model.set_fake_quantization(True)
    cache, stream = model.cached_weights(torch.bfloat16), torch.cuda.Stream()
    with torch.cuda.stream(stream):
        cache.compute()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            cache.compute()
        for _ in range(2):
            with torch.no_grad():
                for master in model.parameters():
                    master += 0.02 * torch.randn_like(master)
            graph.replay()
            replayed = [leaf.detach().clone() for leaf in cache.leaves]
            with use_kernels(False):
                cache.compute()
            for ours, truth in zip(replayed, cache.leaves, strict=True):
                assert different(ours, truth.detach()) == 0
    stream.synchronize()
