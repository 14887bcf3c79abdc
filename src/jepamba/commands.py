"""What each command does. Rooms that need PyTorch are imported inside the command that needs them.

Every function takes the parsed arguments and returns the exit code.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import chain, takewhile
from pathlib import Path
from typing import Any

from jepamba.errors import UserError
from jepamba.progress import Progress, duration


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
    from jepamba.train import resume as resume_run

    args.on_interrupt = _how_to_resume(args.dir)
    return _finished(args.dir, resume_run(args.dir), args.json)


def _how_to_resume(out: Path) -> str:
    return f"stopped; `jepamba resume {out}` continues this run"


def _finished(out: Path, summary: Mapping[str, Any], as_json: bool) -> int:
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
    from jepamba.sizes import sizes

    size = sizes(run)
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


def evaluate(args: Namespace) -> int:
    """`jepamba eval`: bits per byte of a text under an artifact."""
    from dataclasses import replace

    from jepamba.artifact import load_artifact
    from jepamba.data import load_tokens
    from jepamba.evaluate import score_plain, score_sliding

    artifact = load_artifact(args.artifact, device=_device())
    data = replace(artifact.run.data, column=args.column)
    temperature = artifact.temperature if args.temperature is None else args.temperature
    with Progress("reading the text") as report:
        tokens = load_tokens(args.data, artifact.tokenizer, data, args.split, report)
    with Progress("scoring") as report:
        common: dict[str, Any] = {"temperature": temperature, "reset": data.reset, "progress": report}
        if args.sliding:
            score = score_sliding(artifact.model, tokens, data.sequence, stride=args.sliding, **common)
        else:
            score = score_plain(artifact.model, tokens, data.sequence, **common)
    if args.json:
        print(json.dumps(asdict(score)))
    else:
        print(
            f"{score.bpb:.4f} bits per byte  ({score.mode} windows of {data.sequence}, temperature "
            f"{score.temperature:.2f})\n{score.nats_per_token:.4f} nats per token over {score.tokens:,} tokens, "
            f"{score.bytes:,} bytes, in {duration(score.seconds)}"
        )
    return 0


def generate(args: Namespace) -> int:
    """`jepamba generate`: continue a prompt; the text appears as it is drawn."""
    from jepamba.artifact import load_artifact
    from jepamba.generate import generate as generate_text

    artifact = load_artifact(args.artifact, device=_device())
    pieces = generate_text(
        artifact.model,
        artifact.tokenizer,
        args.prompt,
        args.tokens,
        temperature=args.temperature * artifact.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        seed=args.seed,
    )
    if args.json:
        print(json.dumps({"prompt": args.prompt, "text": "".join(pieces), "seed": args.seed}))
        return 0
    print(args.prompt, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
    return 0


def inspect(args: Namespace) -> int:
    """`jepamba inspect`: tensors, grids and bytes of an artifact."""
    from jepamba.artifact import inspect as inspect_artifact

    found = inspect_artifact(args.artifact)
    if args.json:
        print(json.dumps(found))
        return 0
    heads = ["tensor", "shape", "grid", "bytes packed", "bits a value", "entropy"]
    rows = [
        [
            row["name"],
            "×".join(map(str, row["shape"])),
            row["grid"],
            f"{row['bytes_packed']:,}",
            f"{row['bits_per_value']:.2f}",
            f"{row['entropy']:.2f}",
        ]
        for row in found["tensors"]
    ]
    print(columns([heads, *rows]))
    print(
        f"\n{found['parameters']:,} parameters in {found['bytes']:,} bytes ({', '.join(found['codecs'])}); "
        f"temperature {found['temperature']:.2f}; tokenizer: {found['tokenizer']['kind']} of "
        f"{found['tokenizer']['vocab']:,} symbols"
    )
    return 0


def data_build(args: Namespace) -> int:
    """`jepamba data build`: text to shards, with a tokenizer trained, given, or bytes."""
    from jepamba.config import Data
    from jepamba.data import is_shards
    from jepamba.data.source import Source
    from jepamba.data.writer import FolderWriter
    from jepamba.text.tokenizers import ByteTokenizer, Tokenizer, read_tokenizer, train_bpe

    checked = Data(tokenizer=args.tokenizer, vocab=args.vocab, column=args.column, holdout=args.holdout)
    for path in [*args.paths, args.val]:
        if path and is_shards(path):
            raise UserError(f"{path}: already shards; build takes text")
    holdout = 0.0 if args.val else checked.holdout
    sources = [Source(path, args.column, "train", holdout) for path in args.paths]
    tokenizer: Tokenizer
    if args.tokenizer == "bytes":
        tokenizer = ByteTokenizer()
    elif args.tokenizer == "bpe":
        with Progress("training the tokenizer") as report:
            documents = chain.from_iterable(source.documents(report) for source in sources)
            tokenizer = train_bpe((text for split, text in documents if split == "train"), args.vocab)
    else:
        tokenizer = read_tokenizer(args.tokenizer)
    if args.val:
        sources.append(Source(args.val, args.column, "val"))
    with Progress("tokenizing") as report, FolderWriter(args.out, tokenizer) as writer:
        writer.write(chain.from_iterable(source.documents(report) for source in sources))
    args.dir = args.out
    return data_info(args)


def data_info(args: Namespace) -> int:
    """`jepamba data info`: what a folder of shards holds."""
    from jepamba.data import is_shards, open_folder, open_shard
    from jepamba.data.folder import is_folder

    if not is_shards(args.dir):
        raise UserError(f"{args.dir}: no folder of shards; `jepamba data build TEXT --out {args.dir}` makes one")
    if not is_folder(args.dir):
        files = [args.dir] if args.dir.is_file() else sorted(args.dir.glob("*.bin"))
        counts = {file.name: len(open_shard(file, 1 << 16)) for file in files}
        if args.json:
            print(json.dumps({"folder": str(args.dir), "tokenizer": None, "shards": counts}))
        else:
            print(columns([["shard", "tokens"], *([name, f"{count:,}"] for name, count in counts.items())]))
        return 0
    folder = open_folder(args.dir)
    for split in folder.splits:
        folder.tokens(split)
    kind, size = folder.tokenizer.kind, folder.tokenizer.vocab_size
    if args.json:
        tokenizer = {"kind": kind, "vocab_size": size, "fingerprint": folder.tokenizer.fingerprint}
        splits = {name: asdict(split) for name, split in folder.splits.items()}
        print(json.dumps({"folder": str(args.dir), "tokenizer": tokenizer, "splits": splits}))
        return 0
    rows = [
        [name, f"{s.documents:,}", f"{s.text_bytes:,}", f"{s.tokens:,}", f"{s.text_bytes / max(s.tokens, 1):.2f}"]
        for name, s in folder.splits.items()
    ]
    print(columns([["split", "documents", "bytes", "tokens", "bytes a token"], *rows]))
    print(f"\ntokenizer: {kind} of {size:,} symbols, {folder.tokenizer.fingerprint[:12]}")
    return 0


def study_run(args: Namespace) -> int:
    """`jepamba study run`: every configuration and seed of a plan, what is finished left alone."""
    from jepamba.flags import parse_settings
    from jepamba.presets import load_preset
    from jepamba.study.plan import load_plan
    from jepamba.study.report import report_study
    from jepamba.study.run import run_plan

    plan = load_plan(args.plan)
    if args.flags:
        plan = plan.with_common(parse_settings(load_preset(plan.preset), args.flags))
    out = args.out or Path("runs") / plan.name
    args.on_interrupt = "stopped; the same command continues this study"
    outcomes = run_plan(plan, out)
    text = report_study(out)
    print(json.dumps({"out": str(out), "runs": [asdict(o) for o in outcomes]}) if args.json else text)
    return 1 if any(outcome.state == "failed" for outcome in outcomes) else 0


def study_report(args: Namespace) -> int:
    """`jepamba study report`: paired differences of the runs in a folder."""
    from jepamba.study.report import as_json, read_study, report_study

    text = report_study(args.dir)
    print(json.dumps(as_json(read_study(args.dir))) if args.json else text)
    return 0


def study_plans(args: Namespace) -> int:
    """`jepamba study plans`: the plans that come with the package."""
    from jepamba.study.plan import load_plan, plan_names

    questions = {name: load_plan(name).question for name in plan_names()}
    print(json.dumps(questions) if args.json else columns([[name, text] for name, text in questions.items()]))
    return 0


def columns(rows: Sequence[Sequence[str]]) -> str:
    """`rows` as text in columns two spaces apart; a column of numbers stands right, its heading (first row) too."""
    sides = []
    for index, column in enumerate(zip(*rows, strict=True)):
        figures = all(cell[:1].isdigit() or not cell for cell in column[1:]) and any(column[1:])
        sides.append((max(map(len, column)), str.rjust if index and figures else str.ljust))
    lines = ("  ".join(side(cell, width) for cell, (width, side) in zip(row, sides, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def free_folder(wish: Path) -> Path:
    """`wish`, or where there is something at it, `wish-2`, `wish-3` and so on."""
    found, number = wish, 1
    while found.exists():
        number += 1
        found = wish.with_name(f"{wish.name}-{number}")
    return found


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
