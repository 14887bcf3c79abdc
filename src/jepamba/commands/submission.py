"""`jepamba submission`."""

from __future__ import annotations

import json
from argparse import Namespace


def submission(args: Namespace) -> int:
    """`jepamba submission`: from a finished run, the folder that a reviewer of the challenge wants."""
    from jepamba.artifact.inspect import LIMIT_BYTES
    from jepamba.submission import About, check, write_submission

    about = About(args.name, args.author, args.github_id, args.date, args.blurb)
    out = write_submission(args.dir, args.out, about, packed=args.packed, validation=args.validation)
    claims = json.loads((out / "submission.json").read_text(encoding="utf-8"))
    checked = check(out, args.dir) if args.check else None
    if args.json:
        print(json.dumps({"out": str(out), **claims, "checked": checked}))
        return 0
    print(
        f"{out}: {claims['val_bpb']:.4f} BPB ({claims['mode']}) in {claims['bytes_total']:,} bytes "
        f"({claims['bytes_model']:,} of model, {claims['bytes_code']:,} of code), "
        f"{LIMIT_BYTES - claims['bytes_total']:,} to spare"
    )
    if checked:
        print(f"its own script gives {checked['bpb']:.6f} BPB: within {checked['within']} of the claim")
    return 0
