"""Times the MLP with its residual addition, separate kernels and fused: `python bench/mlp.py` prints tables, then JSON.

First output and gradients of the two are compared. `--tiles` times every launch setting of the two fused products
beside the same product by cuBLAS, `--rows` those of the norms' gradient kernels. All are captured graphs, so that
launches do not count; the GPU's caches are cleared before each call, the alternatives are interleaved, and the median
over the rounds is shown.

    python bench/mlp.py [--tokens 65536 --width 640 --hidden 2560 --rounds 30 --tiles --specialize --rows]
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
import triton
from torch import Tensor

from jepamba.ops.dispatch import PROGRAMS
from jepamba.ops.linear.triton import cached_linear
from jepamba.ops.mlp.triton import MlpResidual, Tile, down_gradient, up_product
from jepamba.ops.norms import GATED_NORM_EPS, RMS_EPS, relu2_norm
from jepamba.ops.norms.triton_kernels import gated_norm_gradient_kernel, mix_norm_gradient_kernel
from ssd import captured, measure, on_own_stream

Calls = dict[str, dict[str, Callable[[], object]]]
"""Calls by alternative and name."""
TILES = [
    Tile(rows, columns, 64, warps, stages)
    for (rows, columns), warps, stages in itertools.product(
        [(128, 128), (128, 256), (256, 128), (64, 256)], [4, 8], [2, 3, 4]
    )
    if not (rows * columns > 16384 and warps == 4)
]


def normal(*size: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(*size, device="cuda", dtype=dtype)


def separate(residual: Tensor, x: Tensor, up: Tensor, down: Tensor, scale: Tensor) -> Tensor:
    return residual + cached_linear(relu2_norm(cached_linear(x, up, None, 0)), down, scale, 0)


def leaves_of(o: argparse.Namespace) -> list[Tensor]:
    residual, x = normal(o.tokens, o.width), normal(o.tokens, o.width)
    up, down = normal(o.hidden, o.width) * o.width**-0.5, normal(o.width, o.hidden) * o.hidden**-0.5
    leaves = [residual, x, up, down, normal(o.width, dtype=torch.float32)]
    for leaf in leaves:
        leaf.requires_grad_()
    for weight in (up, down):
        weight.grad_dtype = torch.float32
    return leaves


def compared(leaves: list[Tensor], dout: Tensor) -> dict[str, tuple[float, float]]:
    """Relative errors of the output and each gradient of the two ways, against float64 of a part of the tokens."""
    part = [leaf.detach()[:4096] if index < 2 else leaf.detach() for index, leaf in enumerate(leaves)]
    exact = [value.double().requires_grad_() for value in part]
    residual, x, up, down, scale = exact
    a = (x @ up.t()).relu().square()
    truth = residual + scale * ((a * torch.rsqrt(a.square().mean(-1, keepdim=True) + RMS_EPS)) @ down.t())
    wanted = [truth, *torch.autograd.grad(truth, exact, dout[:4096].double())]
    errors = []
    for way in (separate, MlpResidual.apply):
        values = [value.clone().requires_grad_() for value in part]
        for weight in values[2:4]:
            weight.grad_dtype = torch.float32
        out = way(*values)
        found = [out, *torch.autograd.grad(out, values, dout[:4096])]
        errors.append([((f.double() - w).norm() / w.norm()).item() for f, w in zip(found, wanted, strict=True)])
    return dict(zip(["out", "dresidual", "dx", "dup", "ddown", "dscale"], zip(*errors, strict=True), strict=True))


def tile_calls(o: argparse.Namespace) -> Calls:
    """The two products of each tile that compiles, and by cuBLAS without what comes after them."""
    x, up, down = normal(o.tokens, o.width), normal(o.hidden, o.width), normal(o.width, o.hidden)
    a, c = normal(o.tokens, o.hidden).abs(), normal(o.tokens, dtype=torch.float32)
    calls: Calls = {"cuBLAS": {"up": captured(lambda: x @ up.t()), "down gradient": captured(lambda: x @ down)}}
    for tile in [replace(tile, specialize=True) for tile in TILES] if o.specialize else TILES:
        name = f"{tile.rows} × {tile.columns}, {tile.num_warps} warps, {tile.stages} stages" + (
            ", specialized" if tile.specialize else ""
        )
        graphs: dict[str, Callable[[], object]] = {}
        products: dict[str, Callable[[], object]] = {
            "up": partial(up_product, x, up, tile),
            "down gradient": partial(down_gradient, x, down, a, c, tile),
        }
        for what, call in products.items():
            try:
                graphs[what] = captured(call)
            except Exception as error:
                # Beyond the shared memory or the registers of a multiprocessor, or not supported by this Triton.
                print(f"{name}, {what}: {(str(error).splitlines() or [type(error).__name__])[0][:120]}", flush=True)
                torch.cuda.synchronize()
        if graphs:
            calls[name] = graphs
    return calls


def row_calls(o: argparse.Namespace) -> Calls:
    """The gradient kernels of the block's entrance (with a skip and later gradients) and of the gated norm."""
    N, D = o.tokens, o.width
    x, x0, skip, dmixed, dnormed, dx0_later, dx_later, dx, dx0, dskip = (normal(N, D) for _ in range(10))
    wide, dwide = normal(N, 2 * D + 144), normal(N, 2 * D + 144)
    mix, weight = normal(2, D, dtype=torch.float32), normal(D, dtype=torch.float32)
    partials = normal(4 * PROGRAMS, 3, D, dtype=torch.float32)
    stride = wide.stride(0)
    calls: Calls = {}
    piece = max(32, triton.next_power_of_2(D) // 8)
    settings = itertools.product([piece, 2 * piece], [1, 2, 4], [1, 2, 3], [528, PROGRAMS, 1320, 2112])
    for P, warps, stages, programs in settings:
        launch = {"D": D, "P": P, "num_warps": warps, "STAGES": stages}

        def entrance(has_skip: bool, programs: int = programs, launch: dict[str, int] = launch) -> None:
            mix_norm_gradient_kernel[(programs,)](
                x, x0, skip, mix, weight, dmixed, dnormed, dx0_later, dx_later, dx, dx0, dskip, partials, N, RMS_EPS,
                HAS_SKIP=has_skip, HAS_DMIXED=True, HAS_DX0_LATER=True, HAS_DX_LATER=not has_skip, **launch,
            )  # fmt: skip

        def gated(programs: int = programs, launch: dict[str, int] = launch) -> None:
            gated_norm_gradient_kernel[(programs,)](
                x, wide, weight, dnormed, dx, dwide, partials, stride, stride, N, GATED_NORM_EPS, **launch
            )

        kernels: dict[str, Callable[[], object]] = {
            "entrance": partial(entrance, False),
            "entrance, skip": partial(entrance, True),
            "gated norm": gated,
        }
        calls[f"{P} a piece, {warps} warps, {stages} stages, {programs} programs"] = {
            what: captured(call) for what, call in kernels.items()
        }
    return calls


def show(calls: Calls, rounds: int) -> dict[str, dict[str, float]]:
    """Print a table of microseconds, in the order of the first column, and return it."""
    times = {name: {what: 1000 * t for what, t in row.items()} for name, row in measure(calls, rounds).items()}
    columns = list(dict.fromkeys(what for row in times.values() for what in row))
    print(f"{'µs':44s}" + "".join(f"{what:>16s}" for what in columns))
    for name, row in sorted(times.items(), key=lambda item: sum(item[1].values())):
        print(f"{name:44s}" + "".join(f"{row.get(what, float('nan')):16.1f}" for what in columns), flush=True)
    return times


def bench() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"tokens": 65536, "width": 640, "hidden": 2560, "rounds": 30}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--tiles", action="store_true", help="time launch settings of the fused products")
    parser.add_argument("--specialize", action="store_true", help="with --tiles: those with specialized warps")
    parser.add_argument("--rows", action="store_true", help="time launch settings of the norms' gradient kernels")
    o = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("this benchmark needs a CUDA GPU")
    torch.manual_seed(0)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, Triton {triton.__version__}; {vars(o)}")
    leaves, dout = leaves_of(o), normal(o.tokens, o.width)
    errors = compared(leaves, dout)
    print("relative errors against float64, separate and fused: " + json.dumps(errors))
    assert all(fused < 1.5 * plain + 1e-3 for plain, fused in errors.values())
    calls: Calls = {}
    for name, way in {"separate": separate, "fused": MlpResidual.apply}.items():
        out = way(*leaves)
        calls[name] = {
            "forward": captured(partial(way, *leaves)),
            "backward": captured(partial(torch.autograd.grad, out, leaves, dout, retain_graph=True)),
        }
    result = {"mlp": show(calls, o.rounds)}
    if o.rows:
        result["rows"] = show(row_calls(o), o.rounds)
    if o.tiles:
        result["tiles"] = show(tile_calls(o), o.rounds)
    print(json.dumps({"device": torch.cuda.get_device_name(), "errors": errors, "microseconds": result}))


if __name__ == "__main__":
    on_own_stream(bench)
