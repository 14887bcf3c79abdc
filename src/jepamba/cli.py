"""The `jepamba` command: parse, call, print. What the commands do is in `commands/`, imported when one is called."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import NoReturn

from jepamba import __version__
from jepamba.errors import UserError

USER_MISTAKE, INTERRUPTED, PIPE_CLOSED = 2, 130, 141


class Parser(argparse.ArgumentParser):
    """A parser that raises `UserError` for a mistake, and whose help can end with all config flags."""

    config_flags = False

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (`{self.prog} --help` shows how)")

    def format_help(self) -> str:
        text = super().format_help()
        if self.config_flags:
            from jepamba.flags import flags_help

            text += f"\nSettings; a preset has its own values for most of them.\n\n{flags_help()}"
        return text


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command in `argv` (default: the process's own) and return its exit code.

    0: done; 1: a run of a study failed; 2: a user's mistake, one line on standard error; 130: interrupted, with a line
    that says how to go on.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    args = argparse.Namespace(on_interrupt="interrupted")
    try:
        args = parse(words)
        from jepamba import commands
        from jepamba.progress import is_silent, plain_lines

        plain_lines(args.json)
        result: int = getattr(commands, args.handler)(args)
        sys.stdout.flush()
        return result
    except UserError as error:
        return _mistake(str(error))
    except KeyboardInterrupt:
        if not is_silent():
            print(f"\njepamba: {args.on_interrupt}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has gone (`jepamba inspect … | head`); Python's last flush must not complain of it either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except OSError as error:
        # A full disk, a file that may not be read, a folder where a file should be: the system says what, we say where.
        return _mistake(": ".join(str(part) for part in (error.filename, error.strerror or error) if part))


def parse(words: list[str]) -> argparse.Namespace:
    """The arguments in `words`, with `handler`, the function's name, and `flags`, the config flags as written.

    Raises `UserError` for whatever cannot be understood, and `SystemExit(0)` after `--help` and `--version`.
    """
    parser, commands = build_parser()
    flags: dict[str, list[str]] = {}
    if words[:1] == ["train"] or words[:2] == ["study", "run"]:
        from jepamba.flags import split_flags

        flags, words = split_flags(words)
    first = next((word for word in words if not word.startswith("-")), None)
    if first is None and not words:
        parser.print_help()
        raise SystemExit(0)
    if first is not None and first not in commands:
        close = get_close_matches(first, list(commands), 1)
        hint = f"did you mean `jepamba {close[0]}`?" if close else f"there are {', '.join(commands)}"
        raise UserError(f"unknown command {first!r}; {hint}")
    args, extra = parser.parse_known_args(words, argparse.Namespace(json=False, on_interrupt="interrupted"))
    if extra:
        raise UserError(_unexpected(extra[0], args))
    args.flags = flags
    return args


def _unexpected(word: str, args: argparse.Namespace) -> str:
    if not word.startswith("-"):
        return f"unexpected argument {word!r}; `{args.prog} --help` shows how"
    known = [option.removeprefix("--") for option in args.options if option.startswith("--")]
    settings = [f"--{option}" for option in known if "." in option]
    if settings and "." in word.partition("=")[0]:
        flag = word.partition("=")[0]
        return f"{flag}: a run keeps the settings that it began with; `{args.prog}` takes {', '.join(settings)} alone"
    if args.config_flags:
        from jepamba.flags import flag_types

        known += flag_types()
    from jepamba.flags import nearest

    return f"unknown flag {word.partition('=')[0]}; {nearest(word.partition('=')[0].lstrip('-'), known)}"


def _mistake(message: str) -> int:
    print(f"jepamba: {' '.join(message.split())}", file=sys.stderr)
    return USER_MISTAKE


class _Commands:
    """Adds commands to a parser, each with its examples, `--json`, and the function that does it."""

    def __init__(self, parser: Parser) -> None:
        self.actions = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=Parser, required=True)
        self.names: list[str] = []

    def add(self, name: str, handler: str, purpose: str, examples: Sequence[str], config_flags: bool = False) -> Parser:
        lines = "\n".join(f"  {example}" for example in examples)
        parser = self.actions.add_parser(
            name,
            help=purpose,
            description=purpose,
            epilog=f"examples:\n{lines}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        assert isinstance(parser, Parser)
        self.names.append(name)
        parser.config_flags = config_flags
        if handler:
            parser.add_argument("--json", action="store_true", help="print one JSON object, for machines")
            parser.set_defaults(
                handler=handler, prog=parser.prog, config_flags=config_flags, options=parser._option_string_actions
            )
        return parser


def build_parser() -> tuple[Parser, list[str]]:
    """The parser of the whole command line, and the names of the commands."""
    parser = Parser(
        prog="jepamba",
        description="Train, pack, score and sample tiny text language models: LeWorldModels on a Mamba-2 backbone.",
        epilog="A first look: jepamba demo. Help on a command: jepamba COMMAND --help.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"jepamba {__version__}")
    top = _Commands(parser)
    _add_training(top)
    _add_using(top)
    _add_packing(top)
    _add_data(top)
    _add_study(top)
    _add_submission(top)
    return parser, top.names


def _add_training(top: _Commands) -> None:
    demo = top.add(
        "demo",
        "demo",
        "Train a small model on the English inside Python, pack it, and compare it with compressors.",
        ["jepamba demo", "jepamba demo --seconds 30 --out runs/first", "jepamba demo --json"],
    )
    demo.add_argument("--out", type=Path, metavar="DIR", help="folder of the run (default: runs/demo)")
    demo.add_argument("--seconds", type=float, metavar="N", help="training time (default: that of the preset quick)")
    train = top.add(
        "train",
        "train",
        "Train a preset, or the settings in a TOML file, into a folder.",
        [
            "jepamba train cpu --data.train mytext/ --out runs/mine",
            "jepamba train cpu --train.steps 200 --train.seed 7 --data.tokenizer bytes",
            "jepamba train cpu+sigreg-lewm --jepa.rollout_steps 3",
            "jepamba train submission-bpe --dry-run --json",
            "jepamba train runs/mine/config.toml --out runs/again",
        ],
        config_flags=True,
    )
    train.add_argument("preset", metavar="PRESET", help="a preset, with +overlays; or a .toml file (`jepamba presets`)")
    train.add_argument("--out", type=Path, metavar="DIR", help="folder of the run (default: runs/PRESET)")
    train.add_argument("--dry-run", action="store_true", help="build the model, print its size, and stop")
    resume = top.add(
        "resume",
        "resume",
        "Continue an interrupted run, exactly where its newest checkpoint left it.",
        [
            "jepamba resume runs/mine",
            "jepamba resume runs/mine --data.train moved/text --data.val moved/val.txt --data.cache cache",
            "torchrun --standalone --nproc-per-node 2 -m jepamba resume runs/mine --train.threads 4",
        ],
    )
    resume.add_argument("dir", type=Path, metavar="DIR", help="folder of the run")
    here = resume.add_argument_group("where this machine has its files, if not where the run began with them")
    here.add_argument("--data.train", metavar="PATH", help="the training text; the same, or it is refused")
    here.add_argument("--data.val", metavar="PATH", help="the validation text; the same, or it is refused")
    here.add_argument("--data.tokenizer", metavar="T", help="the tokenizer; the same, or it is refused")
    here.add_argument("--data.cache", metavar="DIR", help="folder for tokenized shards")
    here.add_argument("--train.threads", type=int, metavar="N", help="CPU threads of this process")
    watch = top.add(
        "watch",
        "watch",
        "Draw the curves of a run in the terminal, and again as it goes on.",
        ["jepamba watch runs/mine", "jepamba watch runs/mine --once", "jepamba watch runs/mine --json"],
    )
    watch.add_argument("dir", type=Path, metavar="DIR", help="folder of the run")
    watch.add_argument("--once", action="store_true", help="draw once and stop")
    watch.add_argument(
        "--every", type=float, default=2.0, metavar="S", help="seconds between two pictures (default: 2)"
    )
    presets = top.add(
        "presets",
        "presets",
        "List the presets and overlays, or print one as TOML with its comments.",
        ["jepamba presets", "jepamba presets cpu > mine.toml"],
    )
    presets.add_argument("name", nargs="?", metavar="NAME", help="the one to print")


def _add_using(top: _Commands) -> None:
    evaluate = top.add(
        "eval",
        "evaluate",
        "Score text with an artifact, in bits per byte.",
        [
            "jepamba eval runs/mine/artifact.jepa --data held-out.txt",
            "jepamba eval runs/mine/artifact.jepa --data held-out.txt --carry",
            "jepamba eval runs/mine/artifact.jepa --data shards/ --sliding 16 --json",
        ],
    )
    evaluate.add_argument("artifact", type=Path, metavar="ARTIFACT")
    evaluate.add_argument("--data", required=True, metavar="PATH", help="text, a folder, JSONL, parquet or shards")
    evaluate.add_argument("--column", default="text", metavar="C", help="column of JSONL and parquet (default: text)")
    evaluate.add_argument("--split", default="val", metavar="S", help="split of a folder of shards (default: val)")
    evaluate.add_argument("--sliding", type=int, default=0, metavar="STRIDE", help="sliding windows with this stride")
    evaluate.add_argument("--carry", action="store_true", help="carry the state: one pass, each token read once")
    evaluate.add_argument(
        "--no-reset", action="store_true", help="do not forget the state where a document starts (default: as trained)"
    )
    evaluate.add_argument(
        "--temperature", type=float, metavar="T", help="divide the logits by T (default: the artifact's own)"
    )
    generate = top.add(
        "generate",
        "generate",
        "Continue a prompt with an artifact, in constant memory a token.",
        [
            'jepamba generate runs/mine/artifact.jepa --prompt "In the beginning" --tokens 200 --seed 1',
            'jepamba generate runs/mine/artifact.jepa --prompt "The " --temperature 0.8 --top-p 0.95',
        ],
    )
    generate.add_argument("artifact", type=Path, metavar="ARTIFACT")
    generate.add_argument("--prompt", default="", metavar="TEXT", help="what the text begins with")
    generate.add_argument("--tokens", type=int, default=128, metavar="N", help="at most so many tokens (default: 128)")
    generate.add_argument("--seed", type=int, default=0, metavar="S", help="the same seed, the same text (default: 0)")
    generate.add_argument(
        "--temperature", type=float, default=1.0, metavar="T", help="0: the likeliest token; 1: as learned (default)"
    )
    generate.add_argument("--top-k", type=int, default=0, metavar="K", help="draw among the K likeliest (0: all)")
    generate.add_argument("--top-p", type=float, default=1.0, metavar="P", help="draw among the likeliest share P")
    inspect = top.add(
        "inspect",
        "inspect",
        "Show what is in an artifact: parameters, grids, bytes, errors, and what one more layer or bit would cost.",
        [
            "jepamba inspect runs/mine/artifact.jepa",
            "jepamba inspect runs/mine --json",
            "jepamba inspect runs/mine/artifact.jepa --checkpoint runs/mine/checkpoints/step-000000400",
        ],
    )
    inspect.add_argument("artifact", type=Path, metavar="ARTIFACT", help="an artifact, or the folder of a run")
    inspect.add_argument(
        "--checkpoint", type=Path, metavar="DIR", help="unrounded weights to compare with (default: the run's newest)"
    )


def _add_packing(top: _Commands) -> None:
    compress = top.add(
        "compress",
        "compress",
        "Compress any file with an artifact's model, without loss.",
        [
            "jepamba compress notes.txt --model runs/mine/artifact.jepa -o notes.jpc",
            "jepamba compress notes.txt --model runs/mine/artifact.jepa -o notes.jpc --lanes 1 --json",
        ],
    )
    decompress = top.add(
        "decompress",
        "decompress",
        "Restore a file that `jepamba compress` wrote, to the byte.",
        ["jepamba decompress notes.jpc --model runs/mine/artifact.jepa -o notes.txt"],
    )
    for command in (compress, decompress):
        command.add_argument("file", type=Path, metavar="FILE")
        command.add_argument("--model", type=Path, required=True, metavar="ARTIFACT", help="the same for both")
        command.add_argument("-o", "--out", type=Path, required=True, metavar="OUT", help="file to write")
    compress.add_argument(
        "--lanes", type=int, default=0, metavar="N", help="stretches read at once (default: by size); fewer are slower"
    )


def _add_data(top: _Commands) -> None:
    data = top.add("data", "", "Turn text into shards of tokens, or look at them.", ["jepamba data build --help"])
    commands = _Commands(data)
    build = commands.add(
        "build",
        "data_build",
        "Tokenize text into a folder of shards, and train the tokenizer if none is given.",
        [
            "jepamba data build mytext/ --out shards --tokenizer bpe --vocab 8192",
            "jepamba data build train.jsonl --column body --val val.jsonl --out shards --tokenizer sp8192.model",
            "jepamba data build a.txt.xz b.txt.xz --out shards --tokenizer bytes",
            "jepamba data build hf://owner/name --column text --out shards",
            "jepamba data build hf://owner/name/folder --val hf://owner/name/folder:validation --out shards",
        ],
    )
    build.add_argument(
        "paths", nargs="+", metavar="PATH", help="text files and folders, JSONL, parquet, hf://…, or `stdlib`"
    )
    build.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the shards")
    build.add_argument(
        "--tokenizer", default="bpe", metavar="T", help="bpe (trained here), bytes, or a .model (default: bpe)"
    )
    build.add_argument("--vocab", type=int, default=8192, metavar="N", help="pieces of a bpe tokenizer (default: 8192)")
    build.add_argument("--column", default="text", metavar="C", help="column of JSONL and parquet (default: text)")
    build.add_argument("--val", default="", metavar="PATH", help="validation text (default: a part of PATH)")
    build.add_argument(
        "--holdout", type=float, default=0.1, metavar="S", help="share kept for validation without --val (default: 0.1)"
    )
    fineweb = commands.add(
        "fineweb",
        "data_fineweb",
        "Fetch FineWeb as published shards from the Hugging Face hub, with the tokenizer that made them.",
        [
            "jepamba data fineweb --variant sp8192 --shards 10 --out fineweb",
            "jepamba data fineweb --variant bytes --shards 5 --out fineweb-bytes",
            "jepamba data fineweb --variant sp8192 --shards 80 --out kevclark --repo kevclark/parameter-golf",
            "HF_ENDPOINT=https://hub.example jepamba data fineweb --shards 10 --out fineweb",
        ],
    )
    fineweb.add_argument(
        "--variant", choices=("sp8192", "bytes"), default="sp8192", help="pieces or bytes (default: sp8192)"
    )
    fineweb.add_argument(
        "--shards", type=int, default=1, metavar="N", help="training shards of 100 M tokens, 0.2 GB each (default: 1)"
    )
    fineweb.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the shards")
    fineweb.add_argument("--repo", default="", metavar="OWNER/NAME", help="another repository of the hub")
    fineweb.add_argument("--revision", default="", metavar="R", help="its branch, tag or commit (default: main)")
    info = commands.add("info", "data_info", "Describe a folder of shards.", ["jepamba data info shards"])
    info.add_argument("dir", type=Path, metavar="DIR")


def _add_study(top: _Commands) -> None:
    study = top.add("study", "", "Compare configurations over seeds, in pairs.", ["jepamba study run quick-jepa"])
    commands = _Commands(study)
    run = commands.add(
        "run",
        "study_run",
        "Run a plan: every configuration with every seed; what is finished is skipped, what was interrupted resumes.",
        [
            "jepamba study run quick-jepa",
            "jepamba study run published-n_layer --data.train train.txt.xz --data.val val.txt.xz --train.steps 400",
            "jepamba study run mine.toml --out runs/mine",
        ],
        config_flags=True,
    )
    run.add_argument("plan", metavar="PLAN", help="a .toml file, or a shipped plan (`jepamba study plans`)")
    run.add_argument("--out", type=Path, metavar="DIR", help="folder of the study (default: runs/PLAN)")
    report = commands.add(
        "report",
        "study_report",
        "Differences to the baseline with confidence intervals, as a table, pictures and JSON.",
        ["jepamba study report runs/quick-jepa"],
    )
    report.add_argument("dir", type=Path, metavar="DIR")
    commands.add("plans", "study_plans", "List the shipped plans.", ["jepamba study plans"])


def _add_submission(top: _Commands) -> None:
    submission = top.add(
        "submission",
        "submission",
        "Make the folder that a reviewer of the 16 MB challenge wants from a finished run.",
        [
            'jepamba submission runs/mine -o submission --name "Mamba-2, JEPA" --author "A. Name" --check',
            "jepamba submission runs/mine -o submission --packed --validation",
        ],
    )
    submission.add_argument("dir", type=Path, metavar="DIR", help="the folder of a finished run")
    submission.add_argument("-o", "--out", type=Path, required=True, metavar="OUT", help="the folder to make")
    for field, what in (
        ("name", "its title"),
        ("author", "who made it"),
        ("github-id", "the author's account"),
        ("date", "when it was made, as it is to stand there"),
        ("blurb", "one paragraph on what is new"),
    ):
        submission.add_argument(f"--{field}", default="", metavar="TEXT", help=f"{what} (default: left blank)")
    submission.add_argument("--packed", action="store_true", help="keep the script's code compressed, to save bytes")
    submission.add_argument("--validation", action="store_true", help="add the validation text's tokens as a shard")
    submission.add_argument("--check", action="store_true", help="run the script, alone, and compare its figure")
