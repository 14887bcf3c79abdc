"""What restoring a text takes that the tokenizer of an artifact changes, by kinds of corrections.

    python bench/corrections.py runs/cpu/artifact.jepa val.txt.xz --bytes 1000000

Nothing is compressed: the section of corrections does not depend on the model. Each kind is also coded alone, and the
line ends by how many places they could have been at. Prints a table and, last, one JSON line; takes half a minute.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from compress import beginning
from jepamba.artifact import load_artifact
from jepamba.cli.common import columns
from jepamba.compress.correction_coding import encode_corrections
from jepamba.compress.corrections import Correction, find_corrections
from jepamba.compress.tokens import byte_lengths, to_bytes, to_ids


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--bytes", type=int, default=1_000_000)
    args = parser.parse_args()
    tokenizer, data = load_artifact(args.artifact).tokenizer, beginning(args.text, args.bytes)
    ids = to_ids(tokenizer, data)
    ours, lengths = to_bytes(tokenizer, ids), byte_lengths(tokenizer, ids)
    changes = find_corrections(ours, data)

    def ends_line(change: Correction) -> bool:
        return ours[change.at : change.at + change.drop] == b" " and change.insert.strip(b"\n") == b""

    kinds = {
        "all": changes,
        "line ends for a space": [change for change in changes if ends_line(change)],
        "others": [change for change in changes if not ends_line(change)],
    }
    found = {
        kind: {"corrections": len(given), "bytes": len(encode_corrections(given, ids, lengths))}
        for kind, given in kinds.items()
    }
    rows = [["corrections", "count", "bytes, coded alone", "bits each"]]
    for kind, row in found.items():
        each = 8 * row["bytes"] / max(row["corrections"], 1)
        rows.append([kind, f"{row['corrections']:,}", f"{row['bytes']:,}", f"{each:.2f}"])
    print(columns(rows))
    print(json.dumps({"spaces": ours.count(b" "), "bytes": len(data), "kinds": found}))


if __name__ == "__main__":
    main()
