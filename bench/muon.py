"""Times an optimizer step of a preset's model: `python bench/muon.py` prints a table, then one JSON line.

"Plain" is PyTorch alone, "fused" has the kernels of `ops/muon`. All calls are captured graphs, timed in turn within
each round after a write that clears the GPU's caches; the median over the rounds is shown. The first three rows are the
parts of a Muon step, the last is Muon, AdamW and the zeroing of the gradients.

    python bench/muon.py [submission-bpe --model.n_layer 8 --bench-rounds 30]

Everything but --bench-rounds is a preset or a config flag.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

import torch
from torch import Tensor, nn

from jepamba.cli.flags import parse_settings
from jepamba.config import Run, with_settings
from jepamba.jepa import JepaHeads
from jepamba.model import LanguageModel
from jepamba.ops.dispatch import use_kernels
from jepamba.ops.muon import apply_updates, nesterov_updates, orthogonalize
from jepamba.optim import Optimizers
from jepamba.presets import load_preset
from ssd import captured, measure, on_own_stream


def build(run: Run, device: torch.device) -> Optimizers:
    """Return the optimizers of a new model and its heads, with random gradients."""
    torch.manual_seed(0)
    modules = nn.ModuleDict({"model": LanguageModel(run.model, run.quant)})
    if run.jepa.active:
        modules["heads"] = JepaHeads(run.jepa, run.model.d_model)
    modules.to(device)
    optimizers = Optimizers.build(modules.named_parameters(), run.optim, device)
    optimizers.schedule(1.0, run.optim.muon_momentum)
    for p in optimizers.trained().values():
        p.grad = torch.randn_like(p) * 1e-3
    return optimizers


def make_calls(optimizers: Optimizers) -> dict[str, Callable[[], object]]:
    """Return what is timed, by name.

    The first `optimizers.step` zeroes the gradients. From then on the momentum decays, but each update is normalized:
    the products see random numbers in all rounds.
    """
    muon, group = optimizers.muon, optimizers.muon.param_groups[0]
    # The first step allocates the momentum buffers.
    optimizers.step()
    by_shape: dict[torch.Size, list[Tensor]] = {}
    for p in optimizers.groups.muon.values():
        by_shape.setdefault(p.shape, []).append(p)
    grads = [[torch.randn_like(p) for p in params] for params in by_shape.values()]
    buffers = [[torch.randn_like(p) for p in params] for params in by_shape.values()]

    def momentum() -> list[Tensor]:
        return [
            nesterov_updates(g, b, group["momentum"], group["row_norm"], muon.compute_dtype)
            for g, b in zip(grads, buffers, strict=True)
        ]

    updates = momentum()
    directions = [orthogonalize(update_SRC, group["steps"]).unbind() for update_SRC in updates]

    def apply() -> None:
        for params, chosen in zip(by_shape.values(), directions, strict=True):
            apply_updates(params, chosen, group["lr"], group["weight_decay"])

    return {
        "Nesterov updates": momentum,
        "orthogonalization": lambda: [orthogonalize(update_SRC, group["steps"]) for update_SRC in updates],
        "change of the parameters": apply,
        "Muon": muon.step,
        "all optimizers": optimizers.step,
    }


def bench() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", nargs="?", default="submission-bpe")
    parser.add_argument("--bench-rounds", type=int, default=30)
    args, flags = parser.parse_known_args()
    if not torch.cuda.is_available():
        parser.error("this benchmark needs a CUDA GPU")
    run = with_settings(load_preset(args.preset), parse_settings(flags))
    calls: dict[str, dict[str, Callable[[], object]]] = {}
    matrices: list[Tensor] = []
    for how, wanted in (("plain", False), ("fused", True)):
        with use_kernels(wanted), torch.no_grad():
            optimizers = build(run, torch.device("cuda"))
            matrices = list(optimizers.groups.muon.values())
            for name, call in make_calls(optimizers).items():
                calls.setdefault(name, {})[how] = captured(call)
    times = measure(calls, args.bench_rounds)
    size, shapes = sum(p.numel() for p in matrices), len({p.shape for p in matrices})
    device = torch.cuda.get_device_name()
    print(f"{device}, torch {torch.__version__}; Muon: {len(matrices)} matrices of {shapes} shapes, {size / 1e6:.1f} M")
    print(f"{'':28s}{'plain ms':>10s}{'fused ms':>10s}{'times':>8s}")
    for name, row in times.items():
        print(f"{name:28s}{row['plain']:10.3f}{row['fused']:10.3f}{row['plain'] / row['fused']:8.2f}")
    print(json.dumps({"device": device, "matrices": len(matrices), "parameters": size, "milliseconds": times}))


if __name__ == "__main__":
    on_own_stream(bench)
