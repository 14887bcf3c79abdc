"""What each grid costs in bits per byte: one run each, equal steps, one seed, against a run that rounds nothing.

    python bench/grids.py cpu --data.train train-0.txt.xz --data.val val.txt.xz --data.tokenizer sp8192.model \\
        --train.steps 400 --bench-out runs/grids

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
from jepamba.config import Run, with_settings
from jepamba.data import Corpus, corpus
from jepamba.evaluate import score_plain
from jepamba.flags import parse_flags, split_flags
from jepamba.presets import load_preset
from jepamba.progress import Progress
from jepamba.train import resolve, widths
from jepamba.train.device import place
from jepamba.train.micro import MicroPass
from jepamba.train.session import Session
from jepamba.train.step import training_step, watch

EXACT = "fp32"
GRIDS: dict[str, dict[str, Any]] = {
    EXACT: {"bits": 32},
    "int4": {},
    "int4 clipped": {"scale": "clip"},
    "int4 by Hessian": {"scale": "hessian"},
    "int4 groups of 64": {"group": 64},
    "int4 clipped groups of 64": {"group": 64, "scale": "clip"},
    "int3 clipped": {"bits": 3, "scale": "clip"},
    "int5": {"bits": 5},
    "int6": {"bits": 6},
    "2 to 8 bits bytes of int4": {"budget_bytes": "int4"},
    "2 to 8 bits clipped bytes of int4": {"budget_bytes": "int4", "scale": "clip"},
    "int4 embedding int6": {"embedding": "int6"},
    "int4 embedding int5 clipped": {"embedding": "int5", "scale": "clip"},
    "int4 vectors int8": {"vectors": "int8"},
    "int4 vectors fp8-row": {"vectors": "fp8-row"},
}
"""Settings of `quant` by the table's names; a budget is the artifact of the named row."""


def run_of(base: Run, name: str, found: dict[str, dict[str, Any]], qat: float = 1.0) -> Run:
    """`base` on the grid of this name."""
    settings = {**GRIDS[name], "qat_fraction": qat}
    if "budget_bytes" in settings:
        settings["budget_bytes"] = found[settings["budget_bytes"]]["bytes"]
    return with_settings(base, {f"quant.{key}": value for key, value in settings.items()})


def trained(session: Session) -> float:
    """Train to the end of the budget in steps; seconds."""
    micro, started = MicroPass(session), time.perf_counter()
    with Progress("training") as report:
        for step in range(session.run.train.steps):
            share = step / session.run.train.steps
            if widths.due(session, share):
                print("  " + widths.choose(session, share), flush=True)
            ce = training_step(micro, share)["ce"]
            report(step + 1, session.run.train.steps, f"ce {ce:.3f} nats/token")
    return time.perf_counter() - started


def scored(session: Session, path: Path, tokens: int) -> dict[str, Any]:
    """Pack the session's model, and score what was packed."""
    for said in widths.fit(session, path):
        print("  " + said, flush=True)
    size = save_artifact(path, session.model, session.run, session.corpus.tokenizer)
    loaded, run = load_artifact(path, device=session.place.device), session.run
    score = score_plain(
        loaded.model,
        session.corpus.val,
        run.data.seq_len,
        reset=run.data.reset,
        limit=tokens,
        tokens_per_batch=run.eval.tokens_per_batch,
    )
    names = [name for name, weight in widths.adjustable(session).items() if weight.matrix]
    matrices = [loaded.model.weights()[name] for name in names]
    values = sum(matrix.master.numel() for matrix in matrices)
    stored = sum(matrix.quantizer.stored_bits(tuple(matrix.master.shape)) for matrix in matrices)
    bits = stored / values if values else 32.0
    return {"bpb": score.bpb, "bytes": size, "bits": bits, "targets": score.tokens, "widths": loaded.run.quant.width_of}


def settling(session: Session) -> float:
    """Seconds that rounding every weight takes, once a step."""
    session.model.train()
    session.model.set_fake_quantization(True)
    cache = session.model.cached_weights(session.place.dtype)
    times = []
    for _ in range(5):
        _sync(session)
        started = time.perf_counter()
        cache.compute()
        _sync(session)
        times.append(time.perf_counter() - started)
    return min(times)


def _sync(session: Session) -> None:
    if session.place.device.type == "cuda":
        torch.cuda.synchronize()


def measure(base: Run, text: Corpus, names: list[str], out: Path, tokens: int) -> dict[str, dict[str, Any]]:
    """Train what is not there yet, round the unrounded run to every grid, and give all figures by name."""
    where = place(base.train)
    found: dict[str, dict[str, Any]] = {}
    masters: dict[str, torch.Tensor] = {}
    for name in names:
        folder = out / name.replace(" ", "-")
        folder.mkdir(parents=True, exist_ok=True)
        record, state = folder / "result.json", folder / "masters.safetensors"
        print(name, flush=True)
        if record.exists():
            found[name] = json.loads(record.read_text())
        else:
            session = Session(run_of(base, name, found), text, where)
            seconds = trained(session)
            found[name] = {**scored(session, folder / "artifact.jepa", tokens), "seconds": seconds}
            found[name]["settling"] = settling(session)
            if name == EXACT:
                _save(session, state)
            record.write_text(json.dumps(found[name]))
        if name == EXACT:
            masters = _load(state)
        if "after" not in found[name]:
            session = Session(run_of(base, name, found, qat=0.0), text, where)
            session.model.load_state_dict(masters, strict=False)  # what a grid weighs by is measured, not loaded
            watch(session)
            found[name]["after"] = scored(session, folder / "after.jepa", tokens)
            record.write_text(json.dumps(found[name]))
    return found


def _save(session: Session, path: Path) -> None:
    from safetensors.torch import save_file

    save_file({name: value.cpu().contiguous() for name, value in session.model.state_dict().items()}, path)


def _load(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def table(found: dict[str, dict[str, Any]], steps: int) -> str:
    """The figures as Markdown."""
    base = found[EXACT]["bpb"]
    lines = [
        "| grid | bits a weight | artifact, bytes | BPB | lost to fp32 | lost if rounded at the end | rounding, ms |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in found.items():
        after = row["after"]["bpb"] - base
        lines.append(
            f"| {name} | {row['bits']:.2f} | {row['bytes']:,} | {row['bpb']:.4f} | {row['bpb'] - base:+.4f} | "
            f"{after:+.4f} | {1e3 * row['settling']:.1f} |"
        )
    seconds = sum(row["seconds"] for row in found.values()) / len(found)
    return "\n".join([*lines, "", f"{steps} steps, {1e3 * seconds / steps:.0f} ms each (mean over the runs)"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset")
    parser.add_argument("--bench-out", type=Path, default=Path("runs/grids"))
    parser.add_argument("--bench-only", default=",".join(GRIDS))
    parser.add_argument("--bench-tokens", type=int, default=131072)
    args, flags = parser.parse_known_args()
    base = parse_flags(load_preset(args.preset), split_flags(flags)[0])
    text = corpus(base.data)
    base = resolve(base, text)
    names = [name.strip() for name in args.bench_only.split(",")]
    found = measure(base, text, names, args.bench_out, args.bench_tokens)
    print(table(found, base.train.steps))
    print(json.dumps({"steps": base.train.steps, "device": place(base.train).why, "grids": found}))


if __name__ == "__main__":
    main()
