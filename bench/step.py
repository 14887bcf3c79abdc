"""The whole training step of a preset: tokens per second, share of the matmul ceiling, memory, and where time goes.

    python bench/step.py submission-bpe --data.train DIR --data.val DIR --data.tokenizer sp8192.model

Prints a table and, last, one JSON line. Real tokens, real optimizer steps: what is timed is `training_step` itself.
Options of its own: --bench-steps N (timed steps, default 5), --bench-operators chunked,triton (interleaved), and
--bench-profile (a table of kernels). Everything else is a config flag.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch

from jepamba.config import Run
from jepamba.data import corpus
from jepamba.flags import parse_flags, split_flags
from jepamba.model import mixer
from jepamba.presets import load_preset
from jepamba.ssd import ssd, ssd_chunked
from jepamba.train import resolve
from jepamba.train.device import place
from jepamba.train.session import Session
from jepamba.train.step import training_step

OPERATORS = {"default": ssd, "chunked": ssd_chunked}
"""The operator as `ssd` chooses it for the device, and plain PyTorch."""


def matmul_flops_per_token(session: Session) -> float:
    """Floating-point operations of the matrix products for one token, forward and backward: 6 per weight and use.

    The embedding is used as the head's matrix (its lookup costs nothing); the predictor once per roll-out step.
    """
    steps = session.run.jepa.steps if session.run.jepa.weight > 0 else 0
    total = 0
    for name, p in session.modules.named_parameters():
        if p.ndim != 2 or name.rsplit(".", 1)[-1] in ("mix", "skip_weight", "conv_weight"):
            continue
        uses = steps if ".predictor" in name or ".pred_proj" in name else 1
        if name.endswith("token_embed") and session.run.model.tie == 0:
            uses = 0
        total += 6 * p.numel() * uses
    return total


def matmul_ceiling(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP per second of a large square matrix product of random numbers on `device`."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    for _ in range(3):
        a @ b
    times = []
    for _ in range(10):
        _sync(device)
        start = time.perf_counter()
        a @ b
        _sync(device)
        times.append(time.perf_counter() - start)
    return 2 * size**3 / statistics.median(times)


def _sync(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed_step(session: Session) -> float:
    """Seconds of one training step, everything on the device finished."""
    _sync(session.place.device)
    start = time.perf_counter()
    training_step(session, 0.0)
    _sync(session.place.device)
    return time.perf_counter() - start


def measure(run: Run, names: list[str], steps: int, profile: bool) -> dict[str, object]:
    """Interleaved timings of one session per operator; medians."""
    where = place(run.train)
    text = corpus(run.data)
    run = resolve(run, text)
    found: dict[str, dict[str, float]] = {}
    times: dict[str, list[float]] = {name: [] for name in names}
    session = Session(run, text, where)
    for name in names:
        mixer.ssd = OPERATORS[name]
        if where.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        found[name] = {"first step, s": timed_step(session), "second step, s": timed_step(session)}
        found[name]["peak memory, GB"] = where.memory_mb() / 1e3
    for _ in range(steps):
        for name in names:
            mixer.ssd = OPERATORS[name]
            times[name].append(timed_step(session))
    ceiling = matmul_ceiling(where.device, where.dtype)
    flops = matmul_flops_per_token(session)
    for name in names:
        seconds = statistics.median(times[name])
        rate = run.train.tokens_per_step / seconds
        found[name] |= {
            "step, ms": seconds * 1e3,
            "tokens/s": rate,
            "TFLOP/s": rate * flops / 1e12,
            "share of the matmul ceiling": rate * flops / ceiling,
        }
    if profile:
        _profile(session)
    return {
        "device": where.why,
        "torch": torch.__version__,
        "ceiling TFLOP/s": ceiling / 1e12,
        "MFLOP/token": flops / 1e6,
        "tokens per step": run.train.tokens_per_step,
        "tokens per micro-batch": run.train.tokens_per_micro,
        "operators": found,
    }


def _profile(session: Session) -> None:
    cuda = session.place.device.type == "cuda"
    kinds = [torch.profiler.ProfilerActivity.CUDA if cuda else torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=kinds) as profiler:
        training_step(session, 0.0)
    key = "self_cuda_time_total" if cuda else "self_cpu_time_total"
    print(profiler.key_averages().table(sort_by=key, row_limit=25, max_name_column_width=70))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset")
    parser.add_argument("--bench-steps", type=int, default=5)
    parser.add_argument("--bench-operators", default="default,chunked")
    parser.add_argument("--bench-profile", action="store_true")
    args, flags = parser.parse_known_args()
    run = parse_flags(load_preset(args.preset), split_flags(flags)[0])
    result = measure(run, args.bench_operators.split(","), args.bench_steps, args.bench_profile)
    print(f"{result['device']}; torch {result['torch']}; matmul ceiling {result['ceiling TFLOP/s']:.0f} TFLOP/s")
    operators = result["operators"]
    assert isinstance(operators, dict)
    columns = list(next(iter(operators.values())))
    print("operator   " + "  ".join(f"{column:>28}" for column in columns))
    for name, row in operators.items():
        print(f"{name:10} " + "  ".join(f"{row[column]:28.3f}" for column in columns))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
