"""`jepamba push` and `jepamba pull`."""

from __future__ import annotations

import json
from argparse import Namespace

from jepamba.cli.common import LOCATED, add_artifact_and, artifact_and
from jepamba.cli.parser import Commands, local_path, plain_text


def add(commands: Commands) -> None:
    """Add `jepamba push` and `jepamba pull`."""
    parser = commands.add(
        "push",
        push,
        "Copy a model to the Hugging Face hub, with a model card.",
        [
            'jepamba push runs/mine owner/name --license cc-by-4.0 --text "Two hundred fairy tales"',
            "jepamba push runs/mine/artifact.jepa owner/name --license mit --private",
        ],
    )
    add_artifact_and(parser, "name", LOCATED, "owner/name on the hub")
    parser.add_argument(
        "--license",
        type=plain_text,
        required=True,
        metavar="ID",
        help="licence of the training text, as the hub abbreviates it",
    )
    parser.add_argument(
        "--text",
        type=plain_text,
        default="",
        metavar="TEXT",
        help="what the training text is (default: its file name)",
    )
    parser.add_argument("--private", action="store_true", help="make the repository private")
    parser.add_argument("--update", action="store_true", help="add a commit if the repository exists")

    parser = commands.add(
        "pull",
        pull,
        "Copy a model of the Hugging Face hub into a folder.",
        ["jepamba pull owner/name", "jepamba pull owner/name@v1 -o model"],
    )
    parser.add_argument("name", metavar="NAME", help="owner/name[@revision][/file] on the hub")
    parser.add_argument("-o", "--out", type=local_path, metavar="OUT", help="folder to make (default: runs/NAME)")


def push(args: Namespace) -> int:
    """Run `jepamba push` and print the address."""
    from huggingface_hub.utils.tqdm import disable_progress_bars

    from jepamba.hub import push as push_model
    from jepamba.progress import Progress

    artifact, name = artifact_and(args, "name")
    disable_progress_bars()
    with Progress("uploading"):
        pushed = push_model(
            artifact, name, license=args.license, text=args.text, private=args.private, update=args.update
        )
    if args.json:
        print(json.dumps(pushed._asdict()))
    else:
        print(f"{pushed.url}: {', '.join(pushed.files)} in commit {pushed.commit[:12]}")
    return 0


def pull(args: Namespace) -> int:
    """Run `jepamba pull` and print the folder."""
    from jepamba.hub import pull as pull_model
    from jepamba.progress import Progress

    with Progress("downloading"):
        out = pull_model(args.name, args.out)
    args.results_in = out
    files = sorted(path.name for path in out.iterdir())
    print(json.dumps({"out": str(out), "files": files}) if args.json else f"{out}: {', '.join(files)}")
    return 0
