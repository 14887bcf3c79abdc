"""Models trained with and without a carried state, scored with and without one: bits per byte, by seed.

    python bench/carry.py cpu --data.train train-0.txt.xz --data.val val.txt.xz --data.tokenizer sp8192.model \\
        --train.steps 400 --bench-seeds 0,1,2 --bench-out runs/carry

Three runs for each seed, of equal steps: windows in random order; in the text's order; and in order with
`train.carry_state`. Each is scored on its packed artifact in plain windows, by carried state (reset at documents or
not) and in sliding windows. Prints two Markdown tables, the means over the seeds and the differences from the first
training with their 95 % intervals over paired seeds, and, last, one JSON line. A run that is finished (its JSON is in
--bench-out) is not repeated. Options of its own: --bench-out DIR, --bench-seeds N,N, --bench-tokens N (targets of the
validation text, 0: all), --bench-sliding-tokens N, --bench-stride N. Everything else is a config flag. There is no
ghost warm-up.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import evaluate
from jepamba.artifact import save_artifact
from jepamba.cli.flags import parse_settings
from jepamba.config import Run, with_settings
from jepamba.data import Corpus, corpus
from jepamba.presets import load_preset
from jepamba.study.statistics import paired_difference
from jepamba.train import resolve
from jepamba.train.device import choose_device
from jepamba.train.state import TrainState
from quantizers import trained

TRAININGS: dict[str, dict[str, Any]] = {
    "shuffled windows": {"data.shuffle": True},
    "windows in order": {"data.shuffle": False},
    "in order, state carried": {"data.shuffle": False, "train.carry_state": True},
}


def measure(base: Run, text: Corpus, training: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train and score one run, or read what came of it."""
    folder = args.bench_out / f"{training.replace(', ', '-').replace(' ', '-')}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    record, artifact = folder / "result.json", folder / "artifact.jepa"
    if record.exists():
        known: dict[str, Any] = json.loads(record.read_text())
        return known
    run = with_settings(base, {**TRAININGS[training], "train.seed": seed})
    state = TrainState(run, text, choose_device(run.train))
    seconds = trained(state)
    save_artifact(artifact, state.model, state.run, state.corpus.tokenizer)
    words = [str(artifact), "--data", run.data.val, "--rounds", "1", "--strides", str(args.bench_stride)]
    words += ["--tokens", str(args.bench_tokens), "--sliding-tokens", str(args.bench_sliding_tokens)]
    found = {"seconds": seconds, **evaluate.measure(evaluate.options().parse_args(words))}
    record.write_text(json.dumps(found))
    return found


def tables(found: dict[str, dict[int, dict[str, Any]]]) -> str:
    """Means, and differences from the first training; of sliding windows on the part of the text that they were on."""
    first, *others = found
    modes = {mode: "bpb" for mode in next(iter(found[first].values()))["modes"] if not mode.startswith("sliding")}
    modes |= {mode: "bpb_on_part" for mode in next(iter(found[first].values()))["modes"] if mode not in modes}

    def values(training: str, mode: str) -> dict[int, float]:
        return {seed: run["modes"][mode][modes[mode]] for seed, run in found[training].items()}

    lines = [f"| trained on | {' | '.join(modes)} |", f"|---|{'---:|' * len(modes)}"]
    for training in found:
        means = [f"{statistics.mean(values(training, mode).values()):.4f}" for mode in modes]
        lines.append(f"| {training} | {' | '.join(means)} |")
    lines += ["", f"| less {first} | {' | '.join(modes)} |", f"|---|{'---:|' * len(modes)}"]
    for training in others:
        cells = []
        for mode in modes:
            difference = paired_difference(values(training, mode), values(first, mode))
            assert difference is not None
            spread = "" if difference.n < 2 else f" ({difference.low:+.4f} to {difference.high:+.4f})"
            cells.append(f"{difference.mean:+.4f}{spread}")
        lines.append(f"| {training} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset")
    parser.add_argument("--bench-out", type=Path, default=Path("runs/carry"))
    parser.add_argument("--bench-seeds", default="0,1,2")
    parser.add_argument("--bench-tokens", type=int, default=0)
    parser.add_argument("--bench-sliding-tokens", type=int, default=16384)
    parser.add_argument("--bench-stride", type=int, default=16)
    args, flags = parser.parse_known_args()
    base = with_settings(load_preset(args.preset), parse_settings(flags))
    text = corpus(base.data)
    base = resolve(base, text)
    found: dict[str, dict[int, dict[str, Any]]] = {training: {} for training in TRAININGS}
    for seed in map(int, args.bench_seeds.split(",")):
        for training in TRAININGS:
            print(f"{training}, seed {seed}", flush=True)
            found[training][seed] = measure(base, text, training, seed, args)
    print(tables(found))
    print(json.dumps({"steps": base.train.steps, "device": choose_device(base.train).why, "runs": found}))


if __name__ == "__main__":
    main()
