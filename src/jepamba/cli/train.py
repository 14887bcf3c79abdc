"""`jepamba train`."""

from __future__ import annotations

import json
from argparse import SUPPRESS, Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from jepamba.cli.common import columns
from jepamba.cli.flags import add_settings, settings_from_args
from jepamba.cli.parser import Commands, local_path


def add(commands: Commands) -> None:
    """Add `jepamba train`."""
    parser = commands.add(
        "train",
        train,
        "Train a preset or a TOML file of settings; write the run to a folder.",
        [
            "jepamba train cpu --data.train mytext/ --out runs/mine",
            "jepamba train cpu --train.steps 200 --train.seed 7 --data.tokenizer bytes",
            "jepamba train best --train.seconds 600 --data.train mytext/",
            "jepamba train cpu+sigreg-lewm --jepa.rollout_steps 3",
            "jepamba train submission-bpe --dry-run --json",
            "jepamba train runs/mine/config.toml --out runs/again",
            "jepamba train cpu --init-from runs/mine --data.train more/ --train.steps 500",
        ],
    )
    parser.add_argument("preset", metavar="PRESET", help="a preset (`jepamba presets`) with +overlays, or a .toml file")
    parser.add_argument("--out", type=local_path, metavar="DIR", help="folder of the run (default: runs/PRESET)")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the dial's choices and the size of the model and stop"
    )
    parser.add_argument(
        "--init-from", dest="train.init_from", default=SUPPRESS, metavar="ARTIFACT", help="same as --train.init_from"
    )
    add_settings(parser)


def train(args: Namespace) -> int:
    """Run `jepamba train` and print the scores; with `--dry-run`, print the size of the model."""
    from jepamba.presets import preset_layers

    layers, settings = preset_layers(args.preset), settings_from_args(args)
    from jepamba.train.initial_settings import run_of_layers  # imports PyTorch: a wrong preset is refused at once

    run, choices = run_of_layers(*layers, settings)
    if args.dry_run:
        return _dry_run(run, choices, args.json)
    from jepamba.folder_lock import unused_folder
    from jepamba.train import train as train_run

    default = unused_folder(Path("runs") / Path(args.preset).name.removesuffix(".toml"))
    with nullcontext(args.out) if args.out else default as out:
        with resume_hint(args, out):
            summary = train_run(run, out, preset=args.preset, choices=choices)
        return print_summary(args, out, summary)


def _dry_run(run: Any, choices: list[Any], as_json: bool) -> int:
    from jepamba.model_size import model_size

    if not as_json:
        print(*choices, sep="\n", end="\n" if choices else "")
    found: dict[str, Any] = {}
    size_is_dialled = any(name.startswith(("model.", "quant.", "data.vocab")) for name in run.train.dial)
    if run.train.dial and (run.train.seconds > 0 or not size_is_dialled):
        first = "the speed is measured" if run.train.seconds > 0 else "the text is read"
        message = f"{first} at the start of training; the dial then chooses {', '.join(run.train.dial)}"
        found = {"message": message, "dial": run.train.dial}
        if not as_json:
            print(message)
        if size_is_dialled:
            if as_json:
                print(json.dumps(found))
            return 0
    elif run.train.dial:
        run, others = _choices(run, as_json)
        choices = [*choices, *others]
    size = model_size(run)
    if as_json:
        found |= {"parameters": size.counts, "artifact_bytes_estimate": size.artifact_bytes}
        named = {choice.name: {"value": choice.value, "reason": choice.reason} for choice in choices}
        print(json.dumps(found | ({"choices": named} if named else {})))
        return 0
    rows = [[name, f"{count:,}"] for name, count in size.parts.items()]
    rows += [["kept in the artifact", f"{size.counts['kept']:,}"]]
    rows += [["training only", f"{size.counts['training_only']:,}"]]
    print(columns([["parameters", ""], *rows]))
    print(f"\nartifact: about {size.artifact_bytes:,} bytes at most (packed, before entropy coding)")
    return 0


def _choices(run: Any, as_json: bool) -> tuple[Any, list[Any]]:
    """Read the text and let the dial choose. Returns the resolved run and the choices."""
    from jepamba.train import read_and_resolve

    return read_and_resolve(run, say=(lambda line: None) if as_json else print)


@contextmanager
def resume_hint(args: Namespace, out: Path) -> Iterator[None]:
    """On an interrupt, set the message that says whether there is a run in `out` to resume."""
    try:
        yield
    except KeyboardInterrupt:
        args.on_interrupt = "stopped before the run began; the same command starts it"
        if (out / "config.toml").exists():
            args.on_interrupt = f"stopped; `jepamba resume {out}` continues this run"
        raise


def print_summary(args: Namespace, out: Path, summary: Mapping[str, Any]) -> int:
    """Write the report of the finished run in `out`, print its scores, and return the exit code."""
    from jepamba.progress import duration, is_silent, print_line
    from jepamba.report.html import write_report
    from jepamba.text.unrestored import bpb_unit

    if is_silent():
        return 0
    args.results_in = out
    try:
        write_report(out)
    except OSError as error:
        print_line(f"jepamba: the report cannot be written ({error.strerror}); `jepamba resume {out}` writes it")
    if args.json:
        print(json.dumps({"out": str(out), **summary}))
        return 0
    scores = {
        "plain windows": summary["bpb_plain"],
        f"plain windows, temperature {summary['temperature']:.2f}": summary["bpb_calibrated"],
        "sliding windows, same temperature": summary["bpb_sliding"],
        "state carried, same temperature": summary["bpb_carried"],
    }
    print(f"{summary['steps']:,} steps, {summary['tokens']:,} tokens, {duration(summary['seconds'])} of training\n")
    rows = [[name, score["bpb"], bpb_unit(score["counted"])] for name, score in scores.items() if score]
    if summary["bpb_initial"] is not None:
        rows.insert(0, ["before training, plain windows", summary["bpb_initial"], rows[0][2]])
    print(columns([[name, f"{bpb:.4f} {unit}"] for name, bpb, unit in rows]))
    print(f"\nartifact  {out / 'artifact.jepa'} ({summary['artifact_bytes']:,} bytes)\nreport    {out / 'report.html'}")
    return 0
