"""What `jepamba compress` makes of a text, beside the model's own score of it and general-purpose compressors.

    python bench/compress.py runs/cpu/artifact.jepa val.txt.xz --bytes 1000000

Compresses the beginning of the text, decompresses it and compares; says the same of the text as the artifact's
tokenizer gives it back (where that differs, the original has corrections in its file); scores it by one pass with
carried state, in one stream and in several numbers of lanes. With --rounds it first compares the two variants of the
steps, in alternation, on a piece of the text. Prints tables and, last, one JSON line. Seconds are of the clock and of
the processor. At most as many threads work as the text has batches of lanes.
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
from jepamba.cli.common import columns
from jepamba.compress import Compressor
from jepamba.compress.lanes import LaneLayout, lane_count
from jepamba.compress.tokens import Ids, to_bytes, to_ids
from jepamba.data import Tokens
from jepamba.evaluate import compressors, score_carried
from jepamba.ops.dispatch import use_kernels
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


def carried_bpb(artifact: Artifact, ids: Ids, size: int) -> float:
    """What `jepamba eval --carry` says of the tokens of `size` bytes."""
    stream = np.concatenate([np.array([artifact.tokenizer.bos_id], dtype=np.uint16), ids])
    data = artifact.run.data
    score = score_carried(
        artifact.model,
        Tokens([stream], artifact.tokenizer),
        data.seq_len,
        temperature=artifact.temperature,
        reset=data.reset,
    )
    return score.nats_per_token * score.tokens / math.log(2) / size


@torch.inference_mode()
def lane_bits(artifact: Artifact, ids: Ids, plan: LaneLayout) -> float:
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


def variants(model: Compressor, text: bytes, rounds: int) -> list[dict[str, Any]]:
    """`measured` of both variants of the steps, in alternation, with the medians of the seconds."""
    labels = {"PyTorch's steps": False, "compiled steps": True}
    found: dict[str, list[dict[str, Any]]] = {label: [] for label in labels}
    for _ in range(rounds):
        for label, kernels in labels.items():
            with use_kernels(kernels):
                found[label].append(measured(model, text, label))
    return [
        rows[0]
        | {key: np.median([row[key] for row in rows], axis=0).tolist() for key in ("seconds", "processor_seconds")}
        for rows in found.values()
    ]


def given_back(model: Compressor, text: bytes, ids: Ids, original: dict[str, Any]) -> list[dict[str, Any]]:
    """The same for the text as the tokenizer gives it back, where it is another; `original` is `measured` of `text`."""
    back, label = to_bytes(model.artifact.tokenizer, ids), "as the tokenizer gives it back"
    if back == text:
        return []
    if not np.array_equal(to_ids(model.artifact.tokenizer, back), ids):
        return [measured(model, back, label)]
    # The same tokens are the same sections: all that its file lacks are the corrections.
    size = original["compressed_bytes"] - original["corrections_bytes"]
    none = {"corrections": 0, "corrections_bytes": 0, "seconds": [], "processor_seconds": []}
    sizes = {"text": label, "bytes": len(back), "compressed_bytes": size}
    costs = {"bpb": 8 * size / len(back), "model_bpb": original["model_bpb"] * len(text) / len(back)}
    return [original | none | sizes | costs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--bytes", type=int, default=1_000_000)
    parser.add_argument("--lanes", default="256", help="numbers of lanes to score besides the usual one")
    parser.add_argument("--rounds", type=int, default=0, help="rounds of the comparison of both variants")
    parser.add_argument("--piece", type=int, default=100_000, help="bytes of the text that the comparison reads")
    args = parser.parse_args()
    model, text = Compressor.open(args.artifact), beginning(args.text, args.bytes)
    ids = to_ids(model.artifact.tokenizer, text)
    compared = variants(model, beginning(args.text, args.piece), args.rounds) if args.rounds else []
    files = [measured(model, text, "as it is")]
    files += given_back(model, text, ids, files[0])
    whole = carried_bpb(model.artifact, ids, len(text))
    usual = lane_count(ids.size)
    bits = {}
    for count in sorted({*map(int, args.lanes.split(",")), usual}):
        with Progress(f"scoring {count} lanes"):
            bits[count] = lane_bits(model.artifact, ids, LaneLayout(ids.size, count))
    others = compressors(text)

    if compared:
        times = [["", "lanes", "bytes", "s to compress", "s to decompress", "CPU s", "CPU s"]]
        for row in [*compared, files[0]]:
            seconds = [f"{value:.1f}" for value in (*row["seconds"], *row["processor_seconds"])]
            times.append(
                [f"{row['text']}, {row['bytes']:,} bytes", f"{row['lanes']}", f"{row['compressed_bytes']:,}", *seconds]
            )
        print(columns(times), end="\n\n")
    rows = [["", "bytes", "bits per byte"]]
    for file in files:
        size, side = file["bytes"], file["corrections_bytes"]
        score = whole * len(text) / size
        rows += [
            [f"text {file['text']}", f"{size:,}", ""],
            ["  carried state (eval --carry)", "", f"{score:.4f}"],
            [f"  the same steps as the file's, {file['lanes']} lanes", "", f"{file['model_bpb']:.4f}"],
            ["  the file", f"{file['compressed_bytes']:,}", f"{file['bpb']:.4f}"],
            ["    more than carried state, in percent", "", f"{100 * (file['bpb'] / score - 1):.2f}"],
            ["    of it corrections", f"{side:,}", f"{8 * side / size:.4f}"],
        ]
    rows += [[row["compressor"], f"{row['bytes']:,}", f"{row['bpb']:.4f}"] for row in others]
    print(columns(rows), end="\n\n")
    lanes = [["lanes", "bits per byte", "more than in one stream"]]
    lanes += [[f"{n}", f"{b / len(text):.5f}", f"{100 * (b / len(text) / whole - 1):.3f} %"] for n, b in bits.items()]
    print(columns(lanes))
    print(json.dumps({"variants": compared, "files": files, "carried_bpb": whole, "lane_bits": bits, "others": others}))


if __name__ == "__main__":
    main()
