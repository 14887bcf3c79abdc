"""Times `CachedWeights.compute`, the weights of a training step: `python bench/fake_quantize.py` prints a table.

Three ways: unquantized (the cast to bf16), fake-quantized in plain PyTorch, and with the kernels (fused); for all
weights, and for those of each quantizer. The fused weights are first compared with the plain ones, to the bit. All are
captured graphs, so that launches from the host do not count; the GPU's caches are cleared before each call, the three
are interleaved, and the median over the rounds is shown. GB/s counts each master read once and each cached weight
written once. Last comes one JSON line.

    python bench/fake_quantize.py [--layers 8 --width 640 --mlp-mult 2.5 --bits 4 --rounds 100]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

import torch

from jepamba.config import Model, Quant
from jepamba.model import LanguageModel
from jepamba.ops.dispatch import use_kernels
from jepamba.quant import CachedWeights
from ssd import captured, measure, on_own_stream

WAYS = {"unquantized": (False, True), "plain": (True, False), "fused": (True, True)}
"""Whether the weights are fake-quantized, and whether with the kernels."""


def caches_by_quantizer(model: LanguageModel) -> dict[str, CachedWeights]:
    """The cache of all weights, and one for the weights of each quantizer."""
    weights = list(model.quant_weights().values())
    names = sorted({weight.quantizer.name for weight in weights})
    return {"all": CachedWeights(weights, torch.bfloat16)} | {
        name: CachedWeights([weight for weight in weights if weight.quantizer.name == name], torch.bfloat16)
        for name in names
    }


def graphs_of(model: LanguageModel, cache: CachedWeights) -> dict[str, Callable[[], object]]:
    """The computation of the cache as a graph, in each way."""
    graphs: dict[str, Callable[[], object]] = {}
    for way, (quantized, kernels) in WAYS.items():
        model.set_fake_quantization(quantized)
        with use_kernels(kernels):
            graphs[way] = captured(cache.compute)
    return graphs


def values_after(graph: Callable[[], object], cache: CachedWeights) -> list[torch.Tensor]:
    graph()
    return [leaf.detach().clone() for leaf in cache.leaves]


def bench() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"layers": 8, "width": 640, "bits": 4, "rounds": 100}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--mlp-mult", type=float, default=2.5)
    o = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("this benchmark needs a CUDA GPU")
    torch.manual_seed(0)
    config = Model(vocab_size=8192, d_model=o.width, n_layer=o.layers, mlp_mult=o.mlp_mult, mlp_every=1)
    model = LanguageModel(config, Quant(bits=o.bits)).cuda().train()
    with torch.no_grad():
        for master in model.parameters():
            master.add_(0.02 * torch.randn_like(master))
    caches = caches_by_quantizer(model)
    calls = {name: graphs_of(model, cache) for name, cache in caches.items()}
    plain, fused = (values_after(calls["all"][way], caches["all"]) for way in ("plain", "fused"))
    for ours, truth in zip(fused, plain, strict=True):
        bits = torch.int16 if ours.dtype == torch.bfloat16 else torch.int32
        assert torch.equal(ours.view(bits), truth.view(bits)), "fused and plain weights differ"
    device = torch.cuda.get_device_name()
    print(f"{device}, torch {torch.__version__}; {o.layers} layers of width {o.width}, MLP × {o.mlp_mult:g}")
    print(f"{'milliseconds':14s}{'tensors':>9s}{'MB':>9s}" + "".join(f"{way:>13s}" for way in WAYS) + f"{'GB/s':>9s}")
    result: dict[str, dict[str, float]] = {}
    for name, times in measure(calls, o.rounds).items():
        leaves = caches[name].leaves
        size = sum(leaf.numel() * (4 + leaf.element_size()) for leaf in leaves)
        result[name] = {**times, "bytes": size, "tensors": len(leaves)}
        columns = "".join(f"{times[way]:13.3f}" for way in WAYS)
        print(f"{name:14s}{len(leaves):9d}{size / 1e6:9.1f}{columns}{size / times['fused'] / 1e6:9.0f}")
    print(json.dumps({"device": device, "sizes": vars(o), "milliseconds": result}))


if __name__ == "__main__":
    on_own_stream(bench)
