"""What FP8 gains and its rounding costs: `python bench/fp8.py` prints a table, then one JSON line.

Each matrix product of a block with the roundings it needs, and the whole MLP, in bf16 and in FP8; and the rounding
alone beside a plain copy of as many bytes (3 a value). Captured graphs, caches cleared before each call, medians.

    python bench/fp8.py [--tokens 65536 --width 640 --hidden 2560 --rows 1424 --rounds 30]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

import torch
from torch import Tensor

from jepamba.config import Model, Quant
from jepamba.model.layers import Linear, Mlp
from jepamba.ops.fp8.linear import round_rows
from kernels import copy_of
from ssd import captured, measure

Calls = dict[str, dict[str, Callable[[], object]]]
"""Calls by what they are compared in, by name."""


def normal(*size: int) -> Tensor:
    return torch.randn(*size, device="cuda").bfloat16()


def settled(module: torch.nn.Module, fp8: bool) -> None:
    """INT4 weights as training passes read them."""
    module.cuda().train()
    for linear in module.modules():
        if isinstance(linear, Linear):
            linear.w.data.normal_()
            linear.quantized, linear.fp8 = True, fp8
            linear.settle(torch.bfloat16)
            linear.use_settled()


def products(o: argparse.Namespace) -> Calls:
    """Forward, and the gradient of the input; the weights' gradients are bf16 in both."""
    calls: Calls = {}
    shapes = {
        "in": (o.width, o.rows),
        "out": (o.width, o.width),
        "up": (o.width, o.hidden),
        "down": (o.hidden, o.width),
    }
    for name, (inputs, outputs) in shapes.items():
        for how in ("bf16", "fp8"):
            linear = Linear(inputs, outputs, Quant())
            settled(linear, how == "fp8")
            linear.leaves["w"].requires_grad_(False)
            x, pull = normal(o.tokens, inputs).requires_grad_(), normal(o.tokens, outputs)
            out = linear(x)
            calls.setdefault(f"{name} forward", {})[how] = captured(lambda linear=linear, x=x: linear(x))
            calls.setdefault(f"{name} input gradient", {})[how] = captured(
                lambda out=out, x=x, pull=pull: torch.autograd.grad(out, x, pull, retain_graph=True)
            )
    return calls


def mlp(o: argparse.Namespace) -> Calls:
    """With the weights' gradients."""
    calls: Calls = {}
    for how in ("bf16", "fp8"):
        module = Mlp(Model(d_model=o.width, mlp_mult=o.hidden / o.width), Quant())
        settled(module, how == "fp8")
        x, pull = normal(o.tokens, o.width).requires_grad_(), normal(o.tokens, o.width)
        scale = torch.ones(o.width, device="cuda", requires_grad=True)
        leaves = [x, scale, module.up.leaves["w"], module.down.leaves["w"]]
        out = module(x, scale)
        calls.setdefault("MLP forward", {})[how] = captured(lambda module=module, x=x, scale=scale: module(x, scale))
        calls.setdefault("MLP backward", {})[how] = captured(
            lambda out=out, leaves=leaves, pull=pull: torch.autograd.grad(out, leaves, pull, retain_graph=True)
        )
    return calls


def rounding(o: argparse.Namespace) -> Calls:
    """Rows of activations, and of gradients, whose columns have a factor."""
    calls: Calls = {}
    for width in sorted({o.width, o.rows, o.hidden}):
        x, factor = normal(o.tokens, width), torch.rand(width, device="cuda")
        copy = copy_of(3 * x.numel())
        for name, columns in (("", None), (", factor", factor)):
            calls[f"rounding rows of {width}{name}"] = {
                "copy": copy,
                "fp8": captured(lambda x=x, columns=columns: round_rows(x, columns)),
            }
    return calls


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"tokens": 65536, "width": 640, "hidden": 2560, "rows": 1424, "rounds": 30}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    o = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("this benchmark needs a CUDA GPU")
    device = torch.cuda.get_device_name()
    print(f"{device}, torch {torch.__version__}; {o.tokens} tokens")
    print(f"{'':36s}{'bf16 or copy, ms':>18s}{'fp8, ms':>10s}{'share':>8s}")
    found: dict[str, dict[str, float]] = {}
    # Work of the default stream cannot be captured.
    with torch.cuda.stream(torch.cuda.Stream()):
        for make in (products, mlp, rounding):
            for name, times in measure(make(o), o.rounds).items():
                found[name] = times
                other = times.get("bf16", times.get("copy", 0.0))
                print(f"{name:36s}{other:18.3f}{times['fp8']:10.3f}{times['fp8'] / other:8.2f}")
            torch.cuda.empty_cache()
    print(json.dumps({"device": device, "sizes": vars(o), "milliseconds": found}))


if __name__ == "__main__":
    main()
