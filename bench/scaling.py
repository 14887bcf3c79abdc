"""A preset's training step on several GPUs: tokens per second, efficiency, and where the time of a step goes.

    python bench/scaling.py submission-bpe --bench-out one.json
    torchrun --standalone --nproc-per-node 2 bench/scaling.py submission-bpe --bench-against one.json

Prints one Markdown table and, last, one JSON line. The global batch is the preset's on any number of processes (strong
scaling); efficiency is tokens per second per process against the run in --bench-against. It times
`Trainer.train_step` with real tokens. Options of its own: --bench-steps N (timed steps, default 10),
--bench-warmup N (steps before them, default 3), --bench-against FILE and --bench-out FILE (the JSON of another run and
of this one). Everything else is a config flag. On a CPU it runs over gloo: a test of the script, no measurement.

The phases of a step are measured between device events on rank 0, as medians over steps. Waiting for other ranks counts
in the phase in which it happens. The sums within passes and Muon's gather within the update are parts of their phases,
and are also measured alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from jepamba.cli.flags import parse_settings
from jepamba.config import Run, with_settings
from jepamba.data import Batch, corpus
from jepamba.distributed import World, process_group
from jepamba.ops.cuda_graph import CUDAGraph
from jepamba.optim.muon import assign_to_ranks
from jepamba.presets import load_preset
from jepamba.progress import silence
from jepamba.train import resolve
from jepamba.train.device import choose_device
from jepamba.train.dial import resolve_dial
from jepamba.train.microbatch import MicroBatches
from jepamba.train.state import TrainState
from jepamba.train.step import Trainer

PARTS = ("quantized weights", "passes", "gradient sums", "clip", "update")
ALONE_REPEATS = 20


class Clock:
    """Measures named spans of device time; `spans` returns them."""

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self._stamps: dict[str, list[tuple[Any, Any]]] = {}

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Time the body of the context in device time."""
        start = self.now()
        yield
        self._stamps.setdefault(name, []).append((start, self.now()))

    def now(self) -> Any:
        """A time stamp in the order of the device's work."""
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, start: Any, end: Any) -> float:
        """The milliseconds between two time stamps."""
        return float(start.elapsed_time(end)) if self.on_gpu else (end - start) * 1e3

    def spans(self) -> dict[str, list[float]]:
        """Return and clear the milliseconds of every span so far."""
        if self.on_gpu:
            torch.cuda.synchronize()
        found = {name: [self.between(*pair) for pair in pairs] for name, pairs in self._stamps.items()}
        self._stamps.clear()
        return found


class TimedWorld(World):
    """A world that times its sums of gradients."""

    def __init__(self, world: World, clock: Clock) -> None:
        self.__dict__ |= world.__dict__
        self.clock = clock

    def all_reduce_each_(self, tensors: Any) -> None:
        """Call the method of the base class and time it."""
        with self.clock.span("gradient sums"):
            super().all_reduce_each_(tensors)


class TimedState(TrainState):
    """A state that times its waits for the loader, by the host's clock."""

    waits: list[float]

    def next_windows(self) -> Batch:
        """Call the method of the base class and time it."""
        start = time.perf_counter()
        batch = super().next_windows()
        self.waits.append((time.perf_counter() - start) * 1e3)
        return batch


class TimedGraph(CUDAGraph):
    """A graph that times its runs."""

    def __init__(self, name: str, graph: CUDAGraph, clock: Clock) -> None:
        self.__dict__ |= graph.__dict__
        self.name, self.clock = name, clock

    def __call__(self, key: Hashable = None) -> None:
        """Call the method of the base class and time it."""
        with self.clock.span(self.name):
            super().__call__(key)


class TimedTrainer(Trainer):
    """A trainer that times the phases of a step."""

    def __init__(self, state: TrainState, clock: Clock) -> None:
        super().__init__(state)
        self.clock = clock
        self.clip_gradients = TimedGraph("clip", self.clip_gradients, clock)
        self.update = TimedGraph("update", self.update, clock)

    def compute_weights(self) -> None:
        """Call the method of the base class and time it."""
        with self.clock.span("quantized weights"):
            super().compute_weights()

    def accumulate_gradients(self, micro_batches: MicroBatches) -> None:
        """Call the method of the base class and time it."""
        with self.clock.span("passes"):
            super().accumulate_gradients(micro_batches)


def measure(run: Run, world: World, steps: int, warmup: int) -> dict[str, Any]:
    """Measure the figures of the table."""
    device_config = choose_device(run.train)
    text = world.local_rank_zero_first(lambda: corpus(run.data))
    run, _ = resolve_dial(resolve(run, text), text, world)
    clock = Clock(device_config.device)
    state = TimedState(run, text, device_config, TimedWorld(world, clock))
    state.waits = []
    trainer = TimedTrainer(state, clock)
    started = time.perf_counter()
    losses = [trainer.train_step(0.0)["loss"]]
    clock.spans()
    first = time.perf_counter() - started
    losses += [trainer.train_step(0.0)["loss"] for _ in range(warmup - 1)]
    world.all_gather_object(None)
    clock.spans()
    state.waits.clear()
    moments = []
    for _ in range(steps):
        moments.append(clock.now())
        losses.append(trainer.train_step(0.0)["loss"])
    moments.append(clock.now())
    spans = clock.spans()
    world.check_equal(dict(state.modules.state_dict()))
    trainer.release()
    each = [clock.between(a, b) for a, b in pairwise(moments)]
    step_ms = statistics.median(each)
    return {
        "device": device_config.why,
        "torch": torch.__version__,
        "processes": world.world_size,
        "tokens per step": run.train.tokens_per_step,
        "passes per step": state.layout.passes,
        "tokens per micro-batch": [len(rows) * run.data.seq_len for rows in state.layout.of_pass(0)],
        "first step, s": first,
        "step, ms": step_ms,
        "steps, ms": each,
        "tokens/s": run.train.tokens_per_step / step_ms * 1e3,
        "parts, ms": {name: statistics.median(spans.get(name, [0.0])) for name in PARTS},
        "loader, ms": statistics.median(state.waits),
        "alone, ms": alone(state, clock),
        "peak memory, MB": device_config.memory_mb(),
        "losses": losses,
    }


def alone(state: TrainState, clock: Clock) -> dict[str, float]:
    """Milliseconds a step of each exchange between ranks, measured alone."""
    run, world, device = state.run, state.world, state.device
    work: dict[str, tuple[Callable[[], object], int]] = {}
    jepa = run.jepa
    if state.heads is not None and jepa.sigreg_weight > 0:
        samples = 1
        if jepa.sigreg_pool == "timestep":
            samples = min(jepa.sigreg_timesteps or run.data.seq_len, run.data.seq_len)
        sums = torch.zeros(samples, jepa.sigreg_knots, 2, jepa.sigreg_projections, device=device)
        times = 1 if jepa.sigreg_sample == "step" else state.layout.passes
        work[f"SIGReg sums, {times} × {sums.numel() * 4 / 1e6:.1f} MB"] = (lambda: world.all_reduce_(sums), times)
    matrices = list(state.optimizers.groups.muon.values())
    shares = assign_to_ranks(tuple((p.shape[0], p.shape[1]) for p in matrices), world.world_size)
    longest = max(sum(matrices[i].numel() for i in share) for share in shares)
    updates = torch.zeros(longest, dtype=state.optimizers.muon.compute_dtype, device=device)
    size = longest * updates.element_size() / 1e6
    work[f"Muon's updates, {size:.1f} MB of each rank"] = (lambda: world.all_gather(updates), 1)
    grads = [torch.zeros_like(p) for p in state.parameters()]
    size = sum(grad.numel() for grad in grads) * 4 / 1e6
    work[f"gradient sums, {size:.1f} MB"] = (lambda: World.all_reduce_each_(world, grads), 1)
    found = {}
    for name, (exchange, times) in work.items():
        exchange()
        world.all_gather_object(None)
        with clock.span(name):
            for _ in range(ALONE_REPEATS):
                exchange()
        found[name] = clock.spans()[name][0] / ALONE_REPEATS * times
    return found


def table(found: dict[str, Any], against: dict[str, Any] | None) -> str:
    """The result as one Markdown table."""
    step = found["step, ms"]
    rows = [
        ("processes", f"{found['processes']}"),
        ("tokens/s", f"{found['tokens/s']:,.0f}"),
        ("step", f"{step:.2f} ms"),
    ]
    if against is not None:
        rows.insert(2, (f"efficiency against {against['processes']}", f"{100 * found['efficiency']:.1f} %"))
    rows += [(f"— {name}", f"{ms:.2f} ms, {100 * ms / step:.1f} %") for name, ms in found["parts, ms"].items()]
    rest = step - sum(found["parts, ms"].values())
    rows += [("— the rest", f"{rest:.2f} ms, {100 * rest / step:.1f} %")]
    rows += [
        ("waiting for the loader (host)", f"{found['loader, ms']:.2f} ms, {100 * found['loader, ms'] / step:.1f} %")
    ]
    rows += [(f"{name}, alone", f"{ms:.2f} ms, {100 * ms / step:.1f} %") for name, ms in found["alone, ms"].items()]
    rows += [("peak memory of rank 0", f"{found['peak memory, MB'] / 1e3:.1f} GB")]
    return "\n".join(["| | |", "|---|---:|", *(f"| {name} | {value} |" for name, value in rows)])


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset")
    parser.add_argument("--bench-steps", type=int, default=10)
    parser.add_argument("--bench-warmup", type=int, default=3)
    parser.add_argument("--bench-against", type=Path)
    parser.add_argument("--bench-out", type=Path)
    args, flags = parser.parse_known_args()
    run = with_settings(load_preset(args.preset), parse_settings(flags))
    against = json.loads(args.bench_against.read_text()) if args.bench_against else None
    with process_group() as world:
        if not world.is_rank_zero:
            silence()
        found = measure(run, world, args.bench_steps, args.bench_warmup)
        if against is not None:
            each, before = found["tokens/s"] / found["processes"], against["tokens/s"] / against["processes"]
            found["efficiency"] = each / before
        if world.is_rank_zero:
            print(f"{args.preset}: {found['device']}; torch {found['torch']}\n")
            print(table(found, against) + "\n")
            if args.bench_out:
                args.bench_out.write_text(json.dumps(found))
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
