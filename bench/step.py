"""The whole training step of a preset: tokens per second, share of the matmul ceiling, memory, and where time goes.

    python bench/step.py submission-bpe --data.train DIR --data.val DIR --data.tokenizer sp8192.model

Prints a table and, last, one JSON line. Real tokens, real optimizer steps: `Trainer.train_step` itself is timed.
Options of its own: --bench-steps N (timed steps, default 5), --bench-paths fused,torch (interleaved; `torch` is the
same step in plain PyTorch, without kernels and graph), and --bench-profile (a table of kernels). Everything else is a
config flag. `first step` counts from the start of the process: imports, data, model, compilation, and the step itself.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace

import torch

from first_step import seconds_of_process
from jepamba.cli.flags import parse_settings
from jepamba.config import Run, with_settings
from jepamba.data import corpus
from jepamba.ops import dispatch
from jepamba.presets import load_preset
from jepamba.train import read_and_resolve
from jepamba.train.device import choose_device
from jepamba.train.state import TrainState
from jepamba.train.step import Trainer


def matmul_flops_per_token(state: TrainState) -> float:
    """Floating-point operations of the matrix products for one token, forward and backward: 6 per weight and use.

    The embedding is used as the head's matrix (its lookup costs nothing); the predictor once per roll-out step.
    """
    steps = state.run.jepa.rollout_steps if state.run.jepa.weight > 0 else 0
    total = 0
    for name, p in state.modules.named_parameters():
        weight = name.removesuffix(".master")
        if p.ndim != 2 or weight.rsplit(".", 1)[-1] in ("mix", "skip_weight", "conv_weight"):
            continue
        uses = steps if ".predictor" in name or ".pred_proj" in name else 1
        if weight.endswith("token_embed") and state.run.model.tie == 0:
            uses = 0
        total += 6 * p.numel() * uses
    return total


def matmul_ceiling(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP per second of a large square matrix product of random numbers on `device`."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    for _ in range(3):
        a @ b
    _sync(device)
    times = []
    for _ in range(10):
        start = time.perf_counter()
        for _ in range(5):
            a @ b
        _sync(device)
        times.append((time.perf_counter() - start) / 5)
    return 2 * size**3 / statistics.median(times)


def _sync(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed_step(trainer: Trainer, kernels: bool) -> float:
    """Seconds of one training step, everything on the device finished."""
    with dispatch.use_kernels(kernels):
        _sync(trainer.state.device)
        start = time.perf_counter()
        trainer.train_step(0.0)
        _sync(trainer.state.device)
        return time.perf_counter() - start


GAPS = (1.0, 2.0, 5.0, 20.0, 100.0, float("inf"))
"""Gaps between kernels are counted by these lengths, µs."""


def measure(run: Run, paths: list[str], steps: int, profile: bool) -> dict[str, object]:
    """Interleaved timings of one state per path; medians."""
    device_config = choose_device(run.train)
    run, _ = read_and_resolve(run, say=print)
    text = corpus(run.data)
    found: dict[str, dict[str, float]] = {}
    times: dict[str, list[float]] = {name: [] for name in paths}
    trainers: dict[str, Trainer] = {}
    for name in paths:
        if device_config.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() if device_config.device.type == "cuda" else 0
        train = run.train if name == "fused" else replace(run.train, graph=False)
        trainers[name] = Trainer(TrainState(replace(run, train=train), text, device_config))
        first = timed_step(trainers[name], name == "fused")
        found[name] = {"first step, s": seconds_of_process() if len(trainers) == 1 else first}
        found[name]["second step, s"] = timed_step(trainers[name], name == "fused")
        found[name]["peak memory, GB"] = device_config.memory_mb() / 1e3 - before / 1e9
    for _ in range(steps):
        for name in paths:
            times[name].append(timed_step(trainers[name], name == "fused"))
    ceiling = matmul_ceiling(device_config.device, device_config.dtype)
    flops = matmul_flops_per_token(trainers[paths[0]].state)
    for name in paths:
        seconds = statistics.median(times[name])
        rate = run.train.tokens_per_step / seconds
        found[name] |= {
            "step, ms": seconds * 1e3,
            "tokens/s": rate,
            "TFLOP/s": rate * flops / 1e12,
            "share of the matmul ceiling": rate * flops / ceiling,
        }
    if profile:
        _profile(trainers[paths[0]])
    return {
        "device": device_config.why,
        "torch": torch.__version__,
        "ceiling TFLOP/s": ceiling / 1e12,
        "MFLOP/token": flops / 1e6,
        "tokens per step": run.train.tokens_per_step,
        "tokens per micro-batch": run.train.tokens_per_micro,
        "paths": found,
    }


def gaps(spans: list[tuple[float, float]]) -> list[str]:
    """How often, and how long in all, nothing runs between the first and the last of `spans` (start and end, µs)."""
    found = [0.0] * len(GAPS)
    counts = [0] * len(GAPS)
    until = float("inf")
    for start, end in sorted(spans):
        if start > until:
            kind = next(i for i, most in enumerate(GAPS) if start - until <= most)
            found[kind] += start - until
            counts[kind] += 1
        until = end if until == float("inf") else max(until, end)
    return [f"{n} × up to {most:g} µs: {us / 1e3:.2f} ms" for n, most, us in zip(counts, GAPS, found, strict=True) if n]


def _profile(trainer: Trainer) -> None:
    """A table of the kernels of one step, the longest first, and the time in which the device did nothing."""
    cuda = trainer.state.device.type == "cuda"
    kinds = [torch.profiler.ProfilerActivity.CUDA if cuda else torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=kinds) as profiler:
        seconds = timed_step(trainer, True)
    totals: dict[str, tuple[float, int]] = {}
    spans: list[tuple[float, float]] = []
    device = "CUDA" if cuda else "CPU"
    for event in profiler.events():
        # Not the host's calls, which are recorded too: one of them waits for the whole step.
        if event.device_type.name != device:
            continue
        span = event.self_device_time_total if cuda else event.self_cpu_time_total
        old = totals.get(event.name, (0.0, 0))
        totals[event.name] = (old[0] + span, old[1] + 1)
        spans.append((event.time_range.start, event.time_range.end))
    busy = sum(span for span, _ in totals.values())
    print(f"step of {seconds * 1e3:.1f} ms under the profiler, {len(spans)} kernels {busy / 1e3:.1f} ms")
    print("nothing runs between kernels: " + "; ".join(gaps(spans)))
    for name, (span, count) in sorted(totals.items(), key=lambda item: -item[1][0])[:45]:
        print(f"{span / 1e3:9.2f} ms {100 * span / busy:5.1f} %  × {count:5}  {span / count:8.1f} µs  {name[:110]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset")
    parser.add_argument("--bench-steps", type=int, default=5)
    parser.add_argument("--bench-paths", default="fused,torch")
    parser.add_argument("--bench-profile", action="store_true")
    args, flags = parser.parse_known_args()
    run = with_settings(load_preset(args.preset), parse_settings(flags))
    result = measure(run, args.bench_paths.split(","), args.bench_steps, args.bench_profile)
    print(f"{result['device']}; torch {result['torch']}; matmul ceiling {result['ceiling TFLOP/s']:.0f} TFLOP/s")
    paths = result["paths"]
    assert isinstance(paths, dict)
    columns = list(next(iter(paths.values())))
    print("path       " + "  ".join(f"{column:>28}" for column in columns))
    for name, row in paths.items():
        print(f"{name:10} " + "  ".join(f"{row[column]:28.3f}" for column in columns))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
