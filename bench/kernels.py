"""Times the fused operators one by one: `python bench/kernels.py` prints a table, then one JSON line.

Each is bound by its bytes: the table says how many must move (every input read once, every output written once), how
fast they did, and what share that is of a plain copy of as many bytes, timed in the same rounds. Beside it the same
operator in plain PyTorch. All are captured graphs, so that launches do not count; the GPU's caches are cleared before
each call, and the median over the rounds is shown.

    python bench/kernels.py [--batch 64 --length 1024 --vocab 8192 --width 640 --channels 768 --rounds 30 --only NAMES]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

import torch
from torch import Tensor

from jepamba.ops.causal_conv import conv_silu
from jepamba.ops.cross_entropy import capped_cross_entropy, row_losses, token_nats
from jepamba.ops.dispatch import use_kernels
from jepamba.ops.epps_pulley import epps_pulley
from jepamba.ops.norms import add_norm, gated_norm, mix_norm, relu2_norm
from jepamba.ops.predictor import bias_gelu
from ssd import captured, measure, on_own_stream

Parts = dict[str, tuple[Callable[[], object], int]]
"""Calls and the bytes that each must move, by name."""
KNOTS = 17
EMBED = 336


def normal(*size: int) -> Tensor:
    return torch.randn(*size, device="cuda")


def passes(
    name: str, operator: Callable[..., Tensor | tuple[Tensor, ...]], leaves: list[Tensor], sizes: tuple[int, int]
) -> Parts:
    """Forward and backward of a differentiable operator; `sizes` are the bytes of the two."""
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    out = operator(*leaves)
    outputs = (out,) if isinstance(out, Tensor) else out
    grads_out = [torch.randn_like(output) for output in outputs]
    return {
        f"{name} forward": (lambda: operator(*leaves), sizes[0]),
        f"{name} backward": (lambda: torch.autograd.grad(outputs, leaves, grads_out, retain_graph=True), sizes[1]),
    }


def rows(o: argparse.Namespace) -> Parts:
    """What lies between the products, at the widths of `submission-bpe`: the stream's rows, and four times as wide."""
    tokens = o.batch * o.length
    x, x0, skip = (normal(tokens, o.width).bfloat16() for _ in range(3))
    mix, weight = normal(2, o.width), normal(o.width)
    # z lies in rows that hold more than it.
    wide = normal(tokens, 2 * o.width + 144).bfloat16()
    hidden, bias = normal(tokens, 4 * o.width).bfloat16(), normal(4 * o.width)
    size = 2 * x.numel()
    return (
        passes("add and norm", add_norm, [x, x0], (4 * size, 4 * size))
        | passes("block entrance", mix_norm, [x, x0, mix], (4 * size, 8 * size))
        | passes("block entrance, skip", mix_norm, [x, x0, mix, skip, weight], (5 * size, 10 * size))
        | passes("gated norm", gated_norm, [x, wide[:, : o.width], weight], (3 * size, 5 * size))
        | passes("ReLU² and norm", relu2_norm, [hidden], (8 * size, 12 * size))
        | passes("bias and GELU", bias_gelu, [hidden, bias], (8 * size, 12 * size))
    )


def cross_entropy(o: argparse.Namespace) -> Parts:
    """A slice of the head: the losses and the gradient over the logits; evaluation; and the head with its products."""
    rows = min(o.batch * o.length, (1 << 26) // o.vocab)
    raw, bias = (normal(rows, o.vocab) * 5).bfloat16(), normal(o.vocab)
    targets = torch.randint(0, o.vocab, (rows,), device="cuda")
    wide = normal(rows, o.vocab)
    features, matrix = normal(rows, EMBED).bfloat16().requires_grad_(), (normal(o.vocab, EMBED) * 0.3).requires_grad_()

    def head() -> object:
        loss = capped_cross_entropy(features, matrix, bias, targets, "poly", 15.0, 1e-4).total
        return torch.autograd.grad(loss, [features, matrix])

    size = rows * o.vocab
    # Of the head: logits written, read and overwritten, and read for each of two products.
    return {
        "cross-entropy and gradient": (
            lambda: row_losses(raw, bias, targets, "poly", 15.0, z_weight=1e-4, scale=1.0 / rows),
            4 * size,
        ),
        "cross-entropy alone": (lambda: row_losses(raw, bias, targets, "poly", 15.0), 2 * size),
        "nats of fp32 logits": (lambda: token_nats(wide, targets, 0.9), 4 * size),
        "head, products included": (head, 10 * size),
    }


def convolution(o: argparse.Namespace) -> Parts:
    """x a slice of the mixer's rows."""
    rows = normal(o.batch, o.length, 2 * o.channels).bfloat16()
    kernel, bias = normal(o.channels, 4), normal(o.channels)
    x = rows[..., o.channels // 2 : o.channels // 2 + o.channels]
    history = torch.zeros(o.batch, o.channels, 3, device="cuda", dtype=torch.bfloat16)
    reset = torch.rand(o.batch, o.length, device="cuda") < 0.002
    size = 2 * x.numel()

    def without(x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
        return conv_silu(x, history, kernel, bias, None)[0]

    def resets(x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
        return conv_silu(x, history, kernel, bias, reset)[0]

    leaves, sizes = [x, kernel, bias], (2 * size, 3 * size)
    return passes("convolution", without, leaves, sizes) | passes("convolution, resets", resets, leaves, sizes)


def statistic(o: argparse.Namespace) -> Parts:
    """Per timestep, as the submission has it, and pooled over all positions."""
    t, w = torch.linspace(0.2, 4.0, KNOTS, device="cuda"), torch.rand(KNOTS, device="cuda")
    parts: Parts = {}
    for name, shape in (("timesteps", (64, o.batch, 672)), ("positions", (1, o.batch * o.length, 1024))):
        x = normal(*shape)
        size = 4 * x.numel()
        parts |= passes(f"Epps-Pulley, {name}", lambda x: epps_pulley(x, t, w), [x], (size, 2 * size))
    return parts


def copy_of(size: int) -> Callable[[], object]:
    """A plain copy that moves `size` bytes, half of them read."""
    source = torch.empty(size // 2, dtype=torch.int8, device="cuda").random_()
    target = torch.empty_like(source)
    return captured(lambda: target.copy_(source))


def graph_of(name: str, call: Callable[[], object]) -> Callable[[], object]:
    """The call as a graph, or as it is where it cannot be captured."""
    try:
        return captured(call)
    except RuntimeError as error:
        print(f"{name}: no graph: {str(error).splitlines()[0]}")
        torch.cuda.synchronize()
        return call


def bench() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = {"batch": 64, "length": 1024, "vocab": 8192, "width": 640, "channels": 768, "rounds": 30}
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--only", default="", help="words of the names of the operators to time, separated by commas")
    o = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("this benchmark needs a CUDA GPU")
    device = torch.cuda.get_device_name()
    print(f"{device}, torch {torch.__version__}; batch {o.batch}, length {o.length}, vocabulary {o.vocab}")
    print(f"{'':32s}{'ms':>9s}{'MB':>9s}{'GB/s':>9s}{'of a copy':>11s}{'plain ms':>10s}{'times':>8s}")
    result: dict[str, dict[str, float]] = {}
    for make in (rows, cross_entropy, convolution, statistic):
        calls: dict[str, dict[str, Callable[[], object]]] = {}
        sizes: dict[str, int] = {}
        for how, wanted in (("fused", True), ("plain", False)):
            torch.manual_seed(0)
            with use_kernels(wanted):
                for name, (call, size) in make(o).items():
                    if not o.only or any(word in name for word in o.only.split(",")):
                        calls.setdefault(name, {})[how] = graph_of(f"{name}, {how}", call)
                        sizes[name] = size
        for name, size in sizes.items():
            calls[name]["copy"] = copy_of(size)
        for name, times in measure(calls, o.rounds).items():
            size, fused = sizes[name], times["fused"]
            result[name] = times | {"bytes": size}
            print(
                f"{name:32s}{fused:9.3f}{size / 1e6:9.0f}{size / fused / 1e6:9.0f}{times['copy'] / fused:11.0%}"
                f"{times['plain']:10.3f}{times['plain'] / fused:8.1f}"
            )
        del calls
        torch.cuda.empty_cache()
    print(json.dumps({"device": device, "sizes": vars(o), "milliseconds": result}))


if __name__ == "__main__":
    on_own_stream(bench)
