"""What a switch is worth: variants of a preset trained one after the other on the same data, for as many steps.

    python bench/variants.py submission-bpe --data.train DIR --data.val DIR --data.tokenizer sp8192.model \\
        --train.tokens_per_step 65536 --train.steps 400 --optim.ghost_steps 0 --bench-variants base,seed,all_defects

Each line: the final loss, BPB on validation text as the artifact would hold the model (plain windows), the difference
to `base`, and the time. `seed` is `base` with the next seed, which says how much of a difference is noise; `torch` is
`base` in plain PyTorch (no kernels, no graph), stopped after --bench-torch-steps. --bench-out takes JSON with every
variant's cross-entropy at each step. Variants that bring a defect of the published run back are named after it.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from jepamba.cli.flags import parse_settings
from jepamba.config import Run, with_settings
from jepamba.data import Corpus, corpus
from jepamba.evaluate import score_plain
from jepamba.ops import dispatch
from jepamba.presets import load_preset
from jepamba.train import read_and_resolve
from jepamba.train.device import choose_device
from jepamba.train.state import TrainState
from jepamba.train.step import Trainer

VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "seed": {},
    "torch": {"train.graph": False},
    "conv_untrained": {"optim.train_conv": False},
    "bf16_masters": {"train.masters": "bf16"},
    "ssm_decay": {"optim.decay_ssm": True},
    "fp8_unscaled": {"quant.fp8_scale": "none", "quant.vectors": "fp8"},
    "self_skip_off": {"model.self_skip": False},
    "shuffled_and_reset": {"data.shuffle": True, "data.reset": True},
    "sigreg_pooled": {"jepa.sigreg_pool": "positions", "jepa.sigreg_timesteps": 0, "jepa.sigreg_samples": 4096},
    "no_jepa": {"jepa.weight": 0.0, "jepa.sigreg_weight": 0.0},
}
"""Settings of each variant, on top of the preset's."""
VARIANTS["all_defects"] = {
    **VARIANTS["conv_untrained"],
    **VARIANTS["bf16_masters"],
    **VARIANTS["ssm_decay"],
    **VARIANTS["fp8_unscaled"],
}


def train_variant(name: str, run: Run, text: Corpus, val: int, torch_steps: int) -> dict[str, Any]:
    """Train one variant; its losses, its score and its seconds."""
    run = with_settings(run, VARIANTS[name])
    if name == "seed":
        run = with_settings(run, {"train.seed": run.train.seed + 1})
    steps = min(run.train.steps, torch_steps) if name == "torch" else run.train.steps
    start = time.perf_counter()
    with dispatch.use_kernels(name != "torch"):
        state = TrainState(run, text, choose_device(run.train))
        trainer = Trainer(state)
        ce = [trainer.train_step(step / run.train.steps)["ce"] for step in range(steps)]
        seconds = time.perf_counter() - start
        tokens = run.eval.tokens_per_batch
        score = score_plain(
            state.model, text.val, run.data.seq_len, reset=run.data.reset, limit=val, tokens_per_batch=tokens
        )
    return {"bpb": score.bpb, "ce": ce, "seconds": seconds, "steps": steps}


def main() -> None:
    """Parse, train, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset")
    parser.add_argument("--bench-variants", default=",".join(VARIANTS))
    parser.add_argument("--bench-val", type=int, default=0, help="validation targets; 0: all")
    parser.add_argument("--bench-torch-steps", type=int, default=300)
    parser.add_argument("--bench-out", type=Path, help="JSON with every variant's losses, renewed after each")
    args, flags = parser.parse_known_args()
    run = with_settings(load_preset(args.preset), parse_settings(flags))
    run, _ = read_and_resolve(run, say=print)
    text = corpus(run.data)
    found: dict[str, dict[str, Any]] = {}
    print(
        f"{choose_device(run.train).why}; {run.train.steps} steps of {run.train.tokens_per_step:,} tokens", flush=True
    )
    for name in args.bench_variants.split(","):
        one = found[name] = train_variant(name, run, text, args.bench_val, args.bench_torch_steps)
        tail = one["ce"][-20:]
        print(
            f"{name:20} {one['steps']:5} steps  last losses {sum(tail) / len(tail):.4f} nats  {one['bpb']:.4f} BPB  "
            f"{one['bpb'] - found.get('base', one)['bpb']:+.4f}  {one['seconds']:.1f} s",
            flush=True,
        )
        if args.bench_out is not None:
            args.bench_out.write_text(json.dumps({"preset": args.preset, "steps": run.train.steps, "variants": found}))


if __name__ == "__main__":
    main()
