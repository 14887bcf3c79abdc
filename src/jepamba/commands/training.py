"""Commands that train: `demo`, `train`, `resume`, `presets`."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

from jepamba.commands.common import columns, free_folder
from jepamba.progress import duration, is_silent


def demo(args: Namespace) -> int:
    """`jepamba demo`: the whole road on the English inside Python, and its table."""
    from jepamba.demo import demo_table, run_demo

    out = args.out or free_folder(Path("runs/demo"))
    args.on_interrupt = f"stopped; `jepamba resume {out}` continues the training"
    result = run_demo(out, args.seconds)
    print(json.dumps(result) if args.json else demo_table(result))
    return 0


def train(args: Namespace) -> int:
    """`jepamba train`: a preset with its flags, into a folder; or, with --dry-run, its size."""
    from jepamba.flags import parse_flags
    from jepamba.presets import load_preset

    run = parse_flags(load_preset(args.preset), args.flags)
    if args.dry_run:
        return _dry_run(run, args.json)
    from jepamba.train import train as train_run

    out = args.out or free_folder(Path("runs") / Path(args.preset).name.removesuffix(".toml"))
    args.on_interrupt = _how_to_resume(out)
    return _finished(out, train_run(run, out, preset=args.preset), args.json)


def resume(args: Namespace) -> int:
    """`jepamba resume`: go on where the newest checkpoint left a run."""
    from jepamba.config import OF_A_MACHINE
    from jepamba.train import resume as resume_run

    args.on_interrupt = _how_to_resume(args.dir)
    given = {name: getattr(args, name) for name in OF_A_MACHINE}
    changes = {name: value for name, value in given.items() if value is not None}
    return _finished(args.dir, resume_run(args.dir, changes), args.json)


def _how_to_resume(out: Path) -> str:
    return f"stopped; `jepamba resume {out}` continues this run"


def _finished(out: Path, summary: Mapping[str, Any], as_json: bool) -> int:
    if is_silent():
        return 0
    from jepamba.study.html import write_report

    write_report(out)
    if as_json:
        print(json.dumps({"out": str(out), **summary}))
        return 0
    scores = {
        "plain windows": summary["bpb_plain"],
        f"plain windows, temperature {summary['temperature']:.2f}": summary["bpb_calibrated"],
        "sliding windows, same temperature": summary["bpb_sliding"],
    }
    print(f"{summary['steps']:,} steps, {summary['tokens']:,} tokens, {duration(summary['seconds'])} of training\n")
    print(columns([[name, f"{score['bpb']:.4f} BPB"] for name, score in scores.items() if score]))
    print(f"\nartifact  {out / 'artifact.jepa'} ({summary['artifact_bytes']:,} bytes)\nreport    {out / 'report.html'}")
    return 0


def _dry_run(run: Any, as_json: bool) -> int:
    from jepamba.model_size import model_size

    size = model_size(run)
    if as_json:
        print(json.dumps({"parameters": size.counts, "artifact_bytes_estimate": size.artifact_bytes}))
        return 0
    rows = [[name, f"{count:,}"] for name, count in size.parts.items()]
    rows += [["kept in the artifact", f"{size.counts['kept']:,}"]]
    rows += [["training only", f"{size.counts['training_only']:,}"]]
    print(columns([["parameters", ""], *rows]))
    print(f"\nartifact: at most about {size.artifact_bytes:,} bytes (packed, before entropy coding)")
    return 0


def presets(args: Namespace) -> int:
    """`jepamba presets`: what there is, or one of them as TOML."""
    from importlib import resources

    from jepamba.presets import dump_toml, load_preset, preset_names

    texts = {name: (resources.files("jepamba.presets") / f"{name}.toml").read_text() for name in preset_names()}
    if args.name:
        # With overlays, or from a file: what they come to.
        text = texts[args.name] if args.name in texts else dump_toml(load_preset(args.name))
        print(json.dumps({"name": args.name, "toml": text}) if args.json else text.rstrip())
        return 0
    purposes = {name: _first_sentence(text) for name, text in texts.items()}
    print(json.dumps(purposes) if args.json else columns([[name, purpose] for name, purpose in purposes.items()]))
    return 0


def _first_sentence(toml: str) -> str:
    """The first sentence of the comment that a preset opens with."""
    comment = takewhile(lambda line: line.startswith("#"), toml.splitlines())
    return " ".join(line.removeprefix("#").strip() for line in comment).partition(". ")[0].rstrip(".") + "."
