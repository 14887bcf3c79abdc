"""Bits per byte lost to each quantizer: one run each, equal steps, one seed, against a run without rounding.

    python bench/quantizers.py cpu --data.train train-0.txt.xz --data.val val.txt.xz --data.tokenizer sp8192.model \\
        --train.steps 400 --bench-out runs/quantizers

Prints a Markdown table and, last, one JSON line. Each run is scored on the artifact that was read back, at temperature
1. The last column but one is the run without rounding, rounded once, at its end, instead. A run that is finished (its
JSON is in --bench-out) is not repeated. Options of its own: --bench-out DIR, --bench-only NAME,NAME,
--bench-tokens N (targets of the validation text that are scored, default 131072; 0: all). Everything else is a config
flag. There is no ghost warm-up.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from jepamba.artifact import load_artifact, save_artifact
from jepamba.artifact.manifest import stored_tensors
from jepamba.cli.flags import parse_settings
from jepamba.config import Run, with_settings
from jepamba.data import Corpus, corpus
from jepamba.evaluate import score_plain
from jepamba.presets import load_preset
from jepamba.progress import Progress
from jepamba.train import bit_allocation, read_and_resolve
from jepamba.train.device import choose_device
from jepamba.train.state import TrainState
from jepamba.train.step import Trainer

EXACT = "fp32"
QUANTIZERS: dict[str, dict[str, Any]] = {
    EXACT: {"bits": 32},
    "int4": {},
    "int3": {"bits": 3},
    "int5": {"bits": 5},
    "int6": {"bits": 6},
    "2 to 8 bits bytes of int4": {"budget_bytes": "int4"},
    "int4 embedding int6": {"embedding": "int6"},
    "int4 embedding int5": {"embedding": "int5"},
    "int4 vectors int8": {"vectors": "int8"},
    "int4 vectors fp8-row": {"vectors": "fp8-row"},
}
"""Settings of `quant` by the table's names; a budget is the artifact of the named row."""


def run_of(base: Run, name: str, found: dict[str, dict[str, Any]], qat: float = 1.0) -> Run:
    """`base` with the quantizers of this name."""
    settings = {**QUANTIZERS[name], "qat_fraction": qat}
    if "budget_bytes" in settings:
        settings["budget_bytes"] = found[settings["budget_bytes"]]["bytes"]
    return with_settings(base, {f"quant.{key}": value for key, value in settings.items()})


def trained(state: TrainState) -> float:
    """Train to the end of the budget in steps; seconds."""
    trainer, started = Trainer(state), time.perf_counter()
    with Progress("training") as report:
        for step in range(state.run.train.steps):
            share = step / state.run.train.steps
            if bit_allocation.is_due(state, share):
                print("  " + bit_allocation.choose_bits(state, share), flush=True)
            ce = trainer.train_step(share)["ce"]
            report(step + 1, state.run.train.steps, f"ce {ce:.3f} nats/token")
    return time.perf_counter() - started


def scored(state: TrainState, path: Path, tokens: int) -> dict[str, Any]:
    """Pack the state's model, and score what was packed."""
    for message in bit_allocation.pack_within_budget(state, path):
        print("  " + message, flush=True)
    size = save_artifact(path, state.model, state.run, state.corpus.tokenizer)
    loaded, run = load_artifact(path, device=state.device), state.run
    score = score_plain(
        loaded.model,
        state.corpus.val,
        run.data.seq_len,
        reset=run.data.reset,
        limit=tokens,
        tokens_per_batch=run.eval.tokens_per_batch,
    )
    names = [name for name, weight in bit_allocation.adjustable_weights(state).items() if weight.matrix]
    matrices = [loaded.model.quant_weights()[name] for name in names]
    values = sum(matrix.master.numel() for matrix in matrices)
    stored = stored_tensors(loaded.model)
    packed = sum(stream.packed_bytes for name in names for stream in stored[name].streams(name).values())
    bits = 8 * packed / values if values else 32.0
    return {
        "bpb": score.bpb,
        "bytes": size,
        "bits": bits,
        "targets": score.tokens,
        "bit_allocation": loaded.run.quant.bits_by_name,
    }


def rounding_seconds(state: TrainState) -> float:
    """Seconds that rounding every weight takes, once a step."""
    state.model.train()
    state.model.set_fake_quantization(True)
    cache = state.model.cached_weights(state.device_config.dtype)
    times = []
    for _ in range(5):
        _sync(state)
        started = time.perf_counter()
        cache.compute()
        _sync(state)
        times.append(time.perf_counter() - started)
    return min(times)


def _sync(state: TrainState) -> None:
    if state.device.type == "cuda":
        torch.cuda.synchronize()


def measure(base: Run, text: Corpus, names: list[str], out: Path, tokens: int) -> dict[str, dict[str, Any]]:
    """Train what is not there yet, round the unrounded run with every quantizer, and return all figures by name."""
    device_config = choose_device(base.train)
    found: dict[str, dict[str, Any]] = {}
    masters: dict[str, torch.Tensor] = {}
    for name in names:
        folder = out / name.replace(" ", "-")
        folder.mkdir(parents=True, exist_ok=True)
        record, saved = folder / "result.json", folder / "masters.safetensors"
        print(name, flush=True)
        if record.exists():
            found[name] = json.loads(record.read_text())
        else:
            state = TrainState(run_of(base, name, found), text, device_config)
            seconds = trained(state)
            found[name] = {**scored(state, folder / "artifact.jepa", tokens), "seconds": seconds}
            found[name]["rounding_seconds"] = rounding_seconds(state)
            if name == EXACT:
                _save(state, saved)
            record.write_text(json.dumps(found[name]))
        if name == EXACT:
            masters = _load(saved)
        if "after" not in found[name]:
            state = TrainState(run_of(base, name, found, qat=0.0), text, device_config)
            state.model.load_state_dict(masters)
            found[name]["after"] = scored(state, folder / "after.jepa", tokens)
            record.write_text(json.dumps(found[name]))
    return found


def _save(state: TrainState, path: Path) -> None:
    from safetensors.torch import save_file

    save_file({name: value.cpu().contiguous() for name, value in state.model.state_dict().items()}, path)


def _load(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def table(found: dict[str, dict[str, Any]], steps: int) -> str:
    """The figures as Markdown."""
    base = found[EXACT]["bpb"]
    lines = [
        "| quantizer | bits/weight | artifact, bytes | BPB | lost to fp32 | lost if rounded after | rounding, ms |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in found.items():
        after = row["after"]["bpb"] - base
        lines.append(
            f"| {name} | {row['bits']:.2f} | {row['bytes']:,} | {row['bpb']:.4f} | {row['bpb'] - base:+.4f} | "
            f"{after:+.4f} | {1e3 * row['rounding_seconds']:.1f} |"
        )
    seconds = sum(row["seconds"] for row in found.values()) / len(found)
    return "\n".join([*lines, "", f"{steps} steps, {1e3 * seconds / steps:.0f} ms each (mean over the runs)"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset")
    parser.add_argument("--bench-out", type=Path, default=Path("runs/quantizers"))
    parser.add_argument("--bench-only", default=",".join(QUANTIZERS))
    parser.add_argument("--bench-tokens", type=int, default=131072)
    args, flags = parser.parse_known_args()
    base = with_settings(load_preset(args.preset), parse_settings(flags))
    base, _ = read_and_resolve(base, say=print)
    text = corpus(base.data)
    names = [name.strip() for name in args.bench_only.split(",")]
    found = measure(base, text, names, args.bench_out, args.bench_tokens)
    print(table(found, base.train.steps))
    print(json.dumps({"steps": base.train.steps, "device": choose_device(base.train).why, "quantizers": found}))


if __name__ == "__main__":
    main()
