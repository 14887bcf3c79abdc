"""What `jepamba compress` makes of a text, beside the model's own score of it and general-purpose compressors.

    python bench/compress.py runs/cpu/artifact.jepa val.txt.xz --bytes 1000000

Compresses and decompresses the beginning of the text, once as it is and once as the artifact's tokenizer gives it back
(where these differ, the first has corrections in its file); scores it by one pass with carried state, in one stream and
in several numbers of lanes. Prints two tables and, last, one JSON line. Seconds are of the clock and of the processor.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jepamba.artifact import Artifact
from jepamba.commands import columns
from jepamba.compress import Compressor
from jepamba.compress.lanes import Cut, cut
from jepamba.compress.tokens import Ids, to_bytes, to_ids
from jepamba.evaluate import compressors
from jepamba.progress import Progress
from jepamba.text.files import read_blocks

WINDOW = 512
"""Tokens of a lane in one parallel pass."""


def beginning(path: Path, size: int) -> bytes:
    """About the first `size` bytes of the text, whole characters."""
    found = b""
    for block in read_blocks(path):
        found += block
        if len(found) >= size:
            break
    return found[:size].decode("utf-8", "ignore").encode()


@torch.inference_mode()
def carried_bits(artifact: Artifact, ids: Ids, plan: Cut) -> float:
    """−log2 p of the tokens by the parallel form, the state carried along each lane of `plan`."""
    bos, total, state = artifact.tokenizer.bos_id, 0.0, None
    resets = artifact.tokenizer.separator and artifact.run.data.reset
    ids_LT = np.full((plan.lanes, plan.length(0) + 1), -1, dtype=np.int64)
    ids_LT[:, 0] = bos
    for lane, row in enumerate(ids_LT):
        row[1 : plan.length(lane) + 1] = ids[plan.start(lane) : plan.start(lane + 1)]
    for start in range(0, plan.length(0), WINDOW):
        both = torch.from_numpy(ids_LT[:, start : start + WINDOW + 1])
        inputs, targets = both[:, :-1].clamp_min(0), both[:, 1:]
        h, state = artifact.model(inputs, inputs == bos if resets else None, state)
        for row, wanted in zip(h, targets, strict=True):
            logits = artifact.model.logits(row) / artifact.temperature
            total += float(torch.nn.functional.cross_entropy(logits, wanted, ignore_index=-1, reduction="sum"))
    return total / math.log(2)


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """(result, seconds of the clock, seconds of the processor)."""
    clock, processor = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - clock, time.process_time() - processor


def measured(model: Compressor, text: bytes, label: str) -> dict[str, Any]:
    """Compressed and restored, with what each took."""
    with Progress(f"compressing, {label}") as report:
        found, seconds, processor = timed(lambda: model.compress(text, progress=report))
    with Progress(f"decompressing, {label}") as report:
        back, back_seconds, back_processor = timed(lambda: model.decompress(found.content, report))
    if back != text:
        raise AssertionError("the text did not come back")
    return {
        "text": label, "bytes": len(text), "tokens": found.tokens, "lanes": found.lanes,
        "compressed_bytes": len(found.content), "bpb": found.bpb, "model_bpb": found.model_bpb,
        "corrections": found.corrections, "corrections_bytes": found.corrections_bytes,
        "seconds": [seconds, back_seconds], "processor_seconds": [processor, back_processor],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--bytes", type=int, default=1_000_000)
    parser.add_argument("--lanes", default="1,256", help="lane counts to score besides the usual one")
    args = parser.parse_args()
    model, text = Compressor.open(args.artifact), beginning(args.text, args.bytes)
    tokenizer = model.artifact.tokenizer
    ids = to_ids(tokenizer, text)
    given_back = to_bytes(tokenizer, ids)
    files = [measured(model, text, "as it is")]
    if given_back != text:
        files.append(measured(model, given_back, "as the tokenizer gives it back"))
    usual = cut(ids.size).lanes
    counts = sorted({*map(int, args.lanes.split(",")), usual})
    bits = {}
    for count in counts:
        with Progress(f"scoring {count} lanes"):
            bits[count] = carried_bits(model.artifact, ids, Cut(ids.size, count))
    others = compressors(text)

    rows = [["", "bytes of text", "bytes", "bits per byte"]]
    for file in files:
        size = file["bytes"]
        rows += [
            [f"carried state, one stream, {file['text']}", f"{size:,}", "", f"{bits[counts[0]] / size:.4f}"],
            [f"the steps of {file['lanes']} lanes", f"{size:,}", "", f"{file['model_bpb']:.4f}"],
            ["the file", f"{size:,}", f"{file['compressed_bytes']:,}", f"{file['bpb']:.4f}"],
            ["  its corrections", "", f"{file['corrections_bytes']:,}", f"{8 * file['corrections_bytes'] / size:.4f}"],
        ]
    rows += [[row["compressor"], f"{len(text):,}", f"{row['bytes']:,}", f"{row['bpb']:.4f}"] for row in others]
    print(columns(rows), end="\n\n")
    print(
        columns(
            [
                ["lanes", "bits per byte", "more than one stream"],
                *(
                    [f"{count}", f"{value / len(text):.5f}", f"{100 * (value / bits[counts[0]] - 1):.3f} %"]
                    for count, value in bits.items()
                ),
            ]
        )
    )
    result = {"files": files, "lane_bits": bits, "others": others, "threads": torch.get_num_threads()}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
