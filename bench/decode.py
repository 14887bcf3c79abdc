"""Tokens a second of generation: one stream, as `jepamba generate` does it, and many streams at once.

    python bench/decode.py runs/mine/artifact.jepa [--tokens 128] [--streams 1,64] [--device cpu]

One stream draws from the distribution and decodes text; many streams take the likeliest token each, so that what is
timed is the model's recurrent step. The first steps are not counted; medians over the steps. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from jepamba.artifact import load_artifact
from jepamba.evaluate.stored import stored
from jepamba.generate import generate

WARM_UP = 8


def seconds_per_step(step: Callable[[], object], steps: int, device: torch.device) -> float:
    """Median seconds of `step`, everything on the device finished."""
    times = []
    for index in range(WARM_UP + steps):
        start = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if index >= WARM_UP:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    """Parse, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--streams", default="1,64")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    device = torch.device(args.device)
    artifact = load_artifact(args.artifact, device=args.device)
    model = artifact.model
    kept = sum(p.numel() for p in model.parameters())
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{name}, torch {torch.__version__}; {kept:,} parameters")
    rates: dict[str, float] = {}
    pieces = generate(model, artifact.tokenizer, "In the beginning", 10**9)
    written = seconds_per_step(lambda: next(pieces), args.tokens, device)
    rates["generate, 1 stream"] = 1 / written
    for streams in map(int, args.streams.split(",")):
        state, tokens_B1 = model.initial_state(streams), torch.full((streams, 1), 2, device=device)

        def step() -> None:
            nonlocal state, tokens_B1
            with stored(model):
                h_BTD, state = model(tokens_B1, None, state)
                tokens_B1 = model.logits(h_BTD[:, -1]).argmax(-1, keepdim=True)

        rates[f"recurrent step, {streams} streams"] = streams / seconds_per_step(step, args.tokens, device)
    for what, rate in rates.items():
        print(f"{what:28} {rate:10.1f} tokens/s")
    print(json.dumps({"device": name, "parameters": kept, "tokens per second": rates}))


if __name__ == "__main__":
    main()
