"""What is in an artifact: every parameter with its grid, its cost and how well the grid is used, and totals by part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from jepamba.artifact.manifest import Tensor
from jepamba.artifact.store import open_artifact
from jepamba.artifact.streams import Values
from jepamba.model import part_of
from jepamba.quant.entropy import entropy


def inspect(path: Path) -> dict[str, Any]:
    """A JSON-ready description of the artifact at `path`. Raises `UserError` if it is not sound.

    `bytes` is the file's size and `compressed_bytes` that of the streams in it; `blocks` says which codec each group of
    streams is in, `codecs` the distinct ones. `parameters` counts the model's; `tensors` has a row per parameter:
    name, part, shape, grid, `values`, `bytes_packed` (scales included, before compression), `bits_per_value` (packed),
    `entropy` (order 0, bits per value, of what its grid stores: the least that a codec blind to context needs, scales
    excluded), `zeros` (share of values that are 0) and `clipped` (share at the grid's largest magnitude; null
    for plain floating point). `parts` has the totals by part of the model; `bytes_by_part`
    their packed bytes, and those of the tokenizer, which add up to `packed_bytes`.
    """
    opened = open_artifact(Path(path))
    container, manifest, streams = opened.container, opened.manifest, opened.streams
    tensors = [_row(name, tensor, streams) for name, tensor in manifest.tensors.items()]
    blocks = [
        {
            "codec": block.codec,
            "kind": block.streams[0].kind,
            "streams": len(block.streams),
            "bytes_packed": sum(stream.packed_bytes for stream in block.streams),
            "bytes": block.length,
        }
        for block in container.blocks
    ]
    header = manifest.to_header()
    return {
        "file": Path(path).name,
        "bytes": container.file_bytes,
        "compressed_bytes": sum(block.length for block in container.blocks),
        "packed_bytes": sum(stream.packed_bytes for stream in container.streams.values()),
        "codecs": sorted({block.codec for block in container.blocks}),
        "blocks": blocks,
        "parameters": sum(tensor.values for tensor in manifest.tensors.values()),
        "parts": (parts := _parts(tensors)),
        "bytes_by_part": {
            **{part: total["bytes_packed"] for part, total in parts.items()},
            "tokenizer": manifest.tokenizer_bytes,
        },
        "tensors": tensors,
        "temperature": manifest.temperature,
        "tokenizer": {**header["tokenizer"], "vocab": opened.tokenizer.vocab_size},
        "config": header["config"],
        "extra": manifest.extra,
    }


def _row(name: str, tensor: Tensor, streams: dict[str, Values]) -> dict[str, Any]:
    described = tensor.streams(name)
    packed = sum(stream.packed_bytes for stream in described.values())
    role = next(part for part in ("q", "fp8", "value") if part in described)
    values = streams[f"{name}/{role}"]
    _, counts = np.unique(values, return_counts=True)
    return {
        "name": name,
        "part": part_of(name),
        "shape": list(tensor.shape),
        "grid": tensor.grid,
        "values": tensor.values,
        "bytes_packed": packed,
        "bits_per_value": 8 * packed / tensor.values,
        "entropy": entropy(counts),
        **_use(described[role].kind, described[role].bits, values),
    }


def _use(kind: str, bits: int, values: Values) -> dict[str, float | None]:
    """Shares of zeros and of values at the largest magnitude of the grid."""
    if kind == "int":
        magnitude, top = np.abs(values), 2 ** (bits - 1) - 1
    elif kind == "fp8":
        magnitude, top = values & 0x7F, 0x7E  # e4m3 without its sign; 0x7e is 448, 0x7f is NaN
    else:
        sign = 1 << (bits - 1)
        return {"zeros": float(((values & (sign - 1)) == 0).mean()), "clipped": None}
    return {"zeros": float((magnitude == 0).mean()), "clipped": float((magnitude == top).mean())}


def _parts(tensors: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    totals: dict[str, dict[str, int]] = {}
    for row in tensors:
        total = totals.setdefault(row["part"], {"values": 0, "bytes_packed": 0})
        total["values"] += row["values"]
        total["bytes_packed"] += row["bytes_packed"]
    return totals
