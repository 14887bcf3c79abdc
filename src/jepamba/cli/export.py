"""`jepamba export`."""

from __future__ import annotations

import json
from argparse import Namespace

from jepamba.cli.common import LOADED, add_artifact_and, artifact_and
from jepamba.cli.parser import Commands, local_path


def add(commands: Commands) -> None:
    """Add `jepamba export`."""
    parser = commands.add(
        "export",
        export,
        "Write an artifact as a folder for another tool: --to transformers for Hugging Face transformers.",
        [
            "jepamba export runs/mine --to transformers mine-hf",
            "jepamba export --to transformers small-hf",
            "jepamba export hf://owner/name --to transformers mine-hf --json",
        ],
    )
    add_artifact_and(parser, "dir", LOADED, "folder to make")
    parser.add_argument("--to", required=True, choices=["transformers"], help="the tool")


def export(args: Namespace) -> int:
    """Run `jepamba export`: write the folder and print its files."""
    from jepamba.api import load
    from jepamba.export import export_transformers
    from jepamba.progress import Progress

    artifact, name = artifact_and(args, "dir")
    out = local_path(name)
    with Progress("writing the folder"):
        files = export_transformers(load(artifact, "cpu").artifact, out)
    args.results_in = out
    if args.json:
        print(json.dumps({"out": str(out), "files": files}))
        return 0
    print(f"{out}: {sum(files.values()):,} bytes in {', '.join(files)}")
    print(f"AutoModelForCausalLM.from_pretrained({str(out)!r}, trust_remote_code=True) loads the model")
    if "tokenizer.json" not in files:
        print("tokenizer.json cannot express this tokenizer: read tokenizer.model with the package sentencepiece")
    return 0
