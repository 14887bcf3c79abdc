"""`jepamba submission`."""

from __future__ import annotations

import json
from argparse import Namespace

from jepamba.cli.parser import Commands, local_path, plain_text


def add(commands: Commands) -> None:
    """Add `jepamba submission`."""
    parser = commands.add(
        "submission",
        submission,
        "Make a folder for the 16 MB challenge from a finished run.",
        [
            'jepamba submission runs/mine -o submission --name "Mamba-2, JEPA" --author "A. Name" --check',
            "jepamba submission runs/mine -o submission --packed --validation",
        ],
    )
    parser.add_argument("dir", type=local_path, metavar="DIR", help="folder of a finished run")
    parser.add_argument("-o", "--out", type=local_path, required=True, metavar="OUT", help="folder to make")
    for field, meaning in (
        ("name", "title"),
        ("author", "author"),
        ("github-id", "GitHub account of the author"),
        ("date", "date; empty: today"),
        ("blurb", "one paragraph that says what is new"),
    ):
        parser.add_argument(
            f"--{field}", type=plain_text, default="", metavar="TEXT", help=f"{meaning} (default: empty)"
        )
    parser.add_argument("--packed", action="store_true", help="compress the code even if it fits without")
    parser.add_argument("--validation", action="store_true", help="add the validation tokens as a shard")
    parser.add_argument("--check", action="store_true", help="score with the script in isolation and compare")


def submission(args: Namespace) -> int:
    """Run `jepamba submission`: write the folder and print its score and sizes."""
    from jepamba.artifact.inspect import LIMIT_BYTES
    from jepamba.submission import About, check, write_submission

    about = About(args.name, args.author, args.github_id, args.date, args.blurb)
    out = write_submission(args.dir, args.out, about, packed=args.packed, validation=args.validation)
    claims = json.loads((out / "submission.json").read_text(encoding="utf-8"))
    checked = check(out, args.dir) if args.check else None
    args.results_in = out
    if args.json:
        print(json.dumps({"out": str(out), **claims, "checked": checked}))
        return 0
    print(
        f"{out}: val_bpb {claims['val_bpb']:.4f} by decoded bytes ({claims['mode']}), {claims['bytes_total']:,} bytes ("
        f"{claims['bytes_model']:,} model, {claims['bytes_code']:,} code); "
        f"{LIMIT_BYTES - claims['bytes_total']:,} bytes below the limit"
    )
    if checked:
        print(f"the script scores {checked['bpb']:.6f} BPB: within {checked['within']} of the claim")
    return 0
