"""Times the sequence operator: `python bench/ssd.py` prints a table, then one JSON line.

Every alternative is timed in turn within each round, after a write that clears the GPU's caches, and the median over
the rounds is shown. "device" replays a captured graph (the GPU's own time); "eager" is one plain call, Python included.
mamba-ssm and fla-core join where they are installed. Errors are relative RMS against the PyTorch path in float32.

    python bench/ssd.py [--batch 64 --length 1024 --heads 10 --width 64 --state 64 --only NAMES --kernels]
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import platform
import statistics
import warnings
from collections.abc import Callable

import torch
import triton
from torch import Tensor

from jepamba.ops.ssd import ssd_torch
from jepamba.ops.ssd.triton import ssd_triton

Operator = Callable[..., tuple[Tensor, Tensor]]
NAMES = ("y", "final", "dx", "ddt", "dA", "dB", "dC", "dD")
BAR_MS, AIM_MS = 0.70, 0.45


def make_inputs(o: argparse.Namespace, batch: int) -> tuple[list[Tensor], list[Tensor]]:
    """Random inputs (x, B and C slices of one tensor, as in the model) and gradients of both outputs."""
    g = torch.Generator("cuda").manual_seed(0)
    inner, group = o.heads * o.width, o.groups * o.state
    joint = torch.randn(batch, o.length, inner + 2 * group, device="cuda", generator=g).bfloat16()
    x, B, C = joint.split([inner, group, group], dim=-1)
    dt = torch.nn.functional.softplus(torch.randn(batch, o.length, o.heads, device="cuda", generator=g) - 3)
    values = [
        x.unflatten(-1, (o.heads, o.width)),
        dt,
        -torch.linspace(1, 16, o.heads, device="cuda"),
        B.unflatten(-1, (o.groups, o.state)),
        C.unflatten(-1, (o.groups, o.state)),
        torch.ones(o.heads, device="cuda"),
    ]
    dy = torch.randn(batch, o.length, o.heads, o.width, device="cuda", generator=g).bfloat16()
    dfinal = torch.randn(batch, o.heads, o.width, o.state, device="cuda", generator=g)
    return [value.detach().requires_grad_() for value in values], [dy, dfinal]


def mamba_ssm(chunk_size: int) -> Operator | None:
    """mamba-ssm's kernel behind our signature, or None."""
    if importlib.util.find_spec("mamba_ssm") is None:
        return None
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    return lambda x, dt, A, B, C, D: mamba_chunk_scan_combined(
        x, dt, A, B, C, chunk_size=chunk_size, D=D, return_final_states=True
    )


def fla(chunk_size: int) -> Operator | None:
    """fla-core's simple gated linear attention behind our signature, heads expanded and dt folded in, or None."""
    if importlib.util.find_spec("fla") is None:
        return None
    from fla.ops.simple_gla import chunk_simple_gla

    def operator(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> tuple[Tensor, Tensor]:
        repeat = x.shape[2] // B.shape[2]
        q, k = C.repeat_interleave(repeat, 2), B.repeat_interleave(repeat, 2)
        y, final = chunk_simple_gla(q, k, (x * dt.unsqueeze(-1)).to(x.dtype), dt * A, scale=1, output_final_state=True)
        return y + x * D.to(x.dtype).unsqueeze(-1), final.transpose(-1, -2)

    return operator


class Timed:
    """One alternative: its calls, forward and backward and both, eager and as captured graphs."""

    def __init__(self, name: str, operator: Operator, inputs: list[Tensor], weights: list[Tensor]) -> None:
        outputs = operator(*inputs)
        weights = [w.to(o.dtype) for w, o in zip(weights, outputs, strict=True)]

        def backward() -> None:
            torch.autograd.grad(outputs, inputs, weights, retain_graph=True)

        def both() -> None:
            torch.autograd.grad(operator(*inputs), inputs, weights)

        def forward() -> None:
            operator(*inputs)

        self.calls: dict[str, Callable[[], object]] = {}
        for what, call in (("forward", forward), ("backward", backward), ("both", both)):
            self.calls[f"{what} eager"] = call
            try:
                self.calls[f"{what} device"] = captured(call)
            except RuntimeError as error:
                print(f"{name}: no graph of {what}: {str(error).splitlines()[0]}")


def captured(call: Callable[[], object]) -> Callable[[], None]:
    """The call as a CUDA graph."""
    for _ in range(3):
        call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        call()

    def replay(call: Callable[[], object] = call) -> None:
        # The graph reads the call's tensors, so the call has to live as long.
        graph.replay()

    return replay


def once(call: Callable[[], object], flush: Tensor) -> float:
    """Milliseconds of one call with cold caches."""
    flush.zero_()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


def measure(alternatives: dict[str, dict[str, Callable[[], object]]], rounds: int) -> dict[str, dict[str, float]]:
    """Median milliseconds of every call of every alternative, taken in turn."""
    flush = torch.empty(64 * 2**20, dtype=torch.int32, device="cuda")
    times: dict[str, dict[str, list[float]]] = {n: {c: [] for c in calls} for n, calls in alternatives.items()}
    for _ in range(rounds):
        for name, calls in alternatives.items():
            for what, call in calls.items():
                times[name][what].append(once(call, flush))
    return {n: {c: statistics.median(v) for c, v in calls.items()} for n, calls in times.items()}


def traffic(o: argparse.Namespace) -> dict[str, int]:
    """Bytes that cannot be avoided: every input read once, every output written once."""
    tokens = o.batch * o.length
    inner, group = 2 * tokens * o.heads * o.width, 2 * 2 * tokens * o.groups * o.state
    dt, state = 4 * tokens * o.heads, 4 * o.batch * o.heads * o.width * o.state
    forward = 2 * inner + group + dt + state
    return {"forward": forward, "backward": 3 * inner + 2 * group + 2 * dt + 2 * state}


def copies(o: argparse.Namespace) -> dict[str, Callable[[], object]]:
    """Plain copies that move as many bytes (half read, half written)."""
    size = traffic(o)
    size["both"] = sum(size.values())
    buffers = {
        what: torch.empty(bytes_ // 2, dtype=torch.int8, device="cuda").random_() for what, bytes_ in size.items()
    }
    return {f"{what} device": captured(b.clone) for what, b in buffers.items()}


def errors(operator: Operator, o: argparse.Namespace) -> dict[str, float]:
    """Relative RMS error of outputs and gradients on a few sequences, against float32 PyTorch."""
    inputs, weights = make_inputs(o, min(o.batch, 4))
    wide = [value.detach().float().requires_grad_() for value in inputs]

    def results(f: Operator, values: list[Tensor]) -> list[Tensor]:
        outputs = f(*values)
        seeds = [w.to(v.dtype) for w, v in zip(weights, outputs, strict=True)]
        return [*outputs, *torch.autograd.grad(outputs, values, seeds)]

    pairs = zip(results(operator, inputs), results(ssd_torch, wide), strict=True)
    return {n: float((a.float() - b).norm() / b.norm()) for n, (a, b) in zip(NAMES, pairs, strict=True)}


def kernels(inputs: list[Tensor], weights: list[Tensor]) -> None:
    """Median microseconds of each kernel of one forward and backward call of the Triton operator."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(10):
            torch.autograd.grad(ssd_triton(*inputs), inputs, weights)
        torch.cuda.synchronize()
    times: dict[str, list[float]] = {}
    for event in profile.events():
        if event.device_type.name == "CUDA":
            times.setdefault(event.name, []).append(event.device_time)
    for name, values in sorted(times.items(), key=lambda item: -sum(item[1])):
        print(f"  {name[:60]:60s} {statistics.median(values):8.1f} µs × {len(values) / 10:g}")


def on_own_stream(bench: Callable[[], None]) -> None:
    """Run `bench` on a stream of its own: work of the default stream cannot be captured."""
    with torch.cuda.stream(torch.cuda.Stream()) if torch.cuda.is_available() else contextlib.nullcontext():
        bench()


def bench() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {
        "batch": 64,
        "length": 1024,
        "heads": 10,
        "width": 64,
        "state": 64,
        "groups": 1,
        "chunk_size": 64,
        "rounds": 30,
    }
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--only", default="", help="names of the alternatives to time, separated by commas")
    parser.add_argument("--kernels", action="store_true", help="also the time of each kernel of the Triton operator")
    o = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("this benchmark needs a CUDA GPU")
    warnings.filterwarnings("ignore")
    compiled = torch.compile(ssd_torch)
    candidates: dict[str, Operator | None] = {
        "triton": lambda *v: ssd_triton(*v, chunk_size=o.chunk_size),
        "triton-recompute": lambda *v: ssd_triton(*v, chunk_size=o.chunk_size, keep_states=False),
        "torch": lambda *v: ssd_torch(*v, chunk_size=o.chunk_size),
        "torch-compile": lambda *v: compiled(*v, chunk_size=o.chunk_size),
        "mamba-ssm": mamba_ssm(256),
        "fla-core": fla(o.chunk_size),
    }
    wanted = o.only.split(",") if o.only else list(candidates)
    operators = {name: operator for name, operator in candidates.items() if operator is not None and name in wanted}
    inputs, weights = make_inputs(o, o.batch)
    wrong = {}
    for name, operator in list(operators.items()):
        try:
            wrong[name] = errors(operator, o)
        except Exception as error:
            if name.startswith(("triton", "torch")):
                raise
            print(f"{name} does not run here: {error!r:.200}")
            del operators[name]
    alternatives = {}
    for name, operator in operators.items():
        alternatives[name] = Timed(name, operator, inputs, weights).calls
        print(f"{name} is ready", flush=True)
    alternatives["copy of as many bytes"] = copies(o)
    times = measure(alternatives, o.rounds)

    device = torch.cuda.get_device_name()
    print(f"{device}, torch {torch.__version__}, triton {triton.__version__}, python {platform.python_version()}")
    print(
        f"batch {o.batch}, length {o.length}, {o.heads} heads × {o.width}, state {o.state}, {o.groups} group(s), bf16"
    )
    columns = [f"{what} {how}" for how in ("device", "eager") for what in ("forward", "backward", "both")]
    print(f"{'milliseconds':28s}" + "".join(f"{c:>17s}" for c in columns) + "   largest error")
    for name, row in times.items():
        cells = "".join(f"{row[c]:17.3f}" if c in row else f"{'-':>17s}" for c in columns)
        worst = max(wrong[name].items(), key=lambda item: item[1]) if name in wrong else None
        print(f"{name:28s}{cells}" + (f"   {worst[1]:.1e} ({worst[0]})" if worst else ""))
    both = times["triton"].get("both device", times["triton"]["both eager"])
    print(f"triton, forward and backward: {both:.3f} ms; bar {BAR_MS} ms, aim {AIM_MS} ms (at the default sizes)")
    if o.kernels:
        print("kernels of the Triton operator:")
        kernels(inputs, weights)
    missing = [name for name, operator in candidates.items() if operator is None]
    if missing:
        print("not installed: " + ", ".join(missing))
    print(json.dumps({"device": device, "sizes": vars(o), "milliseconds": times, "errors": wrong, "bytes": traffic(o)}))


if __name__ == "__main__":
    on_own_stream(bench)
