"""`jepamba inspect`."""

from __future__ import annotations

import json
from argparse import Namespace

from jepamba.commands.common import columns


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
