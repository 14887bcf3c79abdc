"""What is in an artifact: quantizer, cost and use of the quantizer for each parameter, and totals by part."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jepamba.artifact.manifest import Tensor, expected_tensors
from jepamba.artifact.store import Opened, open_artifact, stored_streams
from jepamba.artifact.streams import StreamSpec, Values
from jepamba.errors import UserError
from jepamba.model import component_of
from jepamba.quant import MAX_BITS, IntQuantizer, Quantizer, Streams, quantizer_named
from jepamba.quant.entropy import entropy, entropy_bits

LIMIT_BYTES = 16_000_000
"""Of code and artifact together in a valid submission to the 16 MB challenge (openai/parameter-golf)."""

Masters = Mapping[str, torch.Tensor]
"""A checkpoint's tensors of a model: `NAME.master`, the master weight; `NAME.input_power`, its inputs' mean squares."""


def inspect(path: Path, masters: Masters | None = None) -> dict[str, Any]:
    """A JSON-ready description of the artifact at `path`. Raises `UserError` if it is not sound.

    `bytes` is the file's size and `compressed_bytes` that of the streams in it; `blocks` says which codec each group of
    streams is in, `codecs` the distinct ones. `parameters` counts the model's; `tensors` has a row per parameter, see
    `_row`. `parts` has the totals by part of the model; `bytes_by_part` their packed bytes, and those of the tokenizer,
    which add up to `packed_bytes`. `costs` says what one more layer or bit would take, see `_costs`.

    With `masters`, the weights before rounding, rows have the rounding's true error; `masters_are_its_own` says whether
    rounding them gives this very artifact. Raises `UserError` for masters of another model.
    """
    opened = open_artifact(Path(path))
    container, manifest, streams = opened.container, opened.manifest, opened.streams
    if masters is not None:
        _check_masters(masters, manifest.tensors)
    shares = _shares(opened)
    tensors = [_row(name, tensor, streams, shares, masters) for name, tensor in manifest.tensors.items()]
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
        "costs": _costs(opened, tensors),
        "masters_are_its_own": None if masters is None else all(row.pop("same") for row in tensors),
        "temperature": manifest.temperature,
        "tokenizer": {**header["tokenizer"], "vocab": opened.tokenizer.vocab_size},
        "config": header["config"],
        "extra": manifest.extra,
    }


def _check_masters(masters: Masters, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        master = masters.get(f"{name}.master")
        if master is None or tuple(master.shape) != tensor.shape:
            raise UserError(
                f"the checkpoint is not of the artifact's model: {name} is missing there or of another shape"
            )


def _shares(opened: Opened) -> dict[str, float]:
    """Bytes of each stream in the file: its block's, by the order-0 entropy of the block's streams."""
    shares: dict[str, float] = {}
    for block in opened.container.blocks:
        # A constant stream has no entropy, but is not free either.
        bits = {s.name: entropy_bits({"": _tensor(opened.streams[s.name])}) + 1.0 for s in block.streams}
        total = sum(bits.values())
        shares |= {name: block.length * own / total for name, own in bits.items()}
    return shares


def _tensor(values: Values) -> torch.Tensor:
    return torch.from_numpy(values.copy())


def _row(
    name: str, tensor: Tensor, streams: dict[str, Values], shares: dict[str, float], masters: Masters | None
) -> dict[str, Any]:
    """One parameter: name, part, shape, quantizer, `values`, and

    `bytes_packed`, scales included, before compression, and `bits_per_value` of that; `bytes_coded`, its share of the
    compressed file, and `bits_coded` a value of that; `entropy` (order 0, bits per value, of the stored values: the
    least that a codec without context needs, scales excluded); `zeros` (share of values that are 0) and `at_largest`
    (share at the quantizer's largest magnitude, clipped or not; null for plain floating point).

    `expected_error`: RMS of the rounding error over the RMS of the weights, if errors were spread evenly over each
    step of the quantizer (step / √12); what clipping loses is not in it. `error`: the measured one; `clipped`, the
    share of the weights that clipping moved by more than half a step (null for plain floating point);
    and `one_more_bit`, the bytes that one more bit for its integers would take. They need the masters, without which
    `error` and `clipped` are null and `one_more_bit` is what a step that much finer costs at high resolution.
    """
    described = tensor.streams(name)
    packed = sum(stream.packed_bytes for stream in described.values())
    role = next(part for part in ("q", "fp8", "value") if part in described)
    values = streams[f"{name}/{role}"]
    _, counts = np.unique(values, return_counts=True)
    coded = sum(shares[stream.name] for stream in described.values())
    quantizer, encoded = quantizer_named(tensor.quantizer), stored_streams(name, tensor, streams)
    weight = quantizer.decode(encoded, tensor.shape)
    steps, largest = _steps(quantizer, encoded, weight), _at_largest(described[role], values)
    row = {
        "name": name,
        "part": component_of(name),
        "shape": list(tensor.shape),
        "quantizer": tensor.quantizer,
        "values": tensor.values,
        "bytes_packed": packed,
        "bits_per_value": 8 * packed / tensor.values,
        "bytes_coded": coded,
        "bits_coded": 8 * coded / tensor.values,
        "entropy": entropy(counts),
        "zeros": _zeros(described[role], values),
        "at_largest": None if largest is None else float(largest.double().mean()),
        "expected_error": _relative(steps / math.sqrt(12), weight),
        "error": None,
        "clipped": None,
    }
    master = importance = None
    if masters is not None:
        master, importance = masters[f"{name}.master"].float(), masters.get(f"{name}.input_power")
        row["error"] = _relative(weight - master, master)
        if largest is not None:
            beyond = (master * weight.sign() - weight.abs() > steps / 2) & largest.reshape(weight.shape)
            row["clipped"] = float(beyond.double().mean())
        again = quantizer.encode(master, importance)
        row["same"] = all(torch.equal(again[part], value) for part, value in encoded.items())
    return row | {"one_more_bit": _one_more_bit(quantizer, encoded, coded, master, importance)}


def _zeros(stream: StreamSpec, values: Values) -> float:
    """The share of zeros."""
    if stream.kind == "int":
        return float((values == 0).mean())
    return float(((values & ((1 << (stream.bits - 1)) - 1)) == 0).mean())  # without the sign


def _at_largest(stream: StreamSpec, values: Values) -> torch.Tensor | None:
    """Which values have the quantizer's largest magnitude; None for plain floating point."""
    if stream.kind == "int":
        return _tensor(np.abs(values) == 2 ** (stream.bits - 1) - 1)
    if stream.kind == "fp8":
        return _tensor((values & 0x7F) == 0x7E)  # e4m3 without its sign; 0x7e is 448, 0x7f is NaN
    return None


_MANTISSA = {"fp8": 3, "fp8-row": 3, "bf16": 7, "fp32": 23}
_SMALLEST_EXPONENT = {"fp8": -6, "fp8-row": -6, "bf16": -126, "fp32": -126}


def _steps(quantizer: Quantizer, streams: Streams, weight: torch.Tensor) -> torch.Tensor:
    """The distance of neighbouring quantized values around each stored one, in the weight's shape."""
    if isinstance(quantizer, IntQuantizer):
        return quantizer.decode({**streams, "q": torch.ones_like(streams["q"])}, tuple(weight.shape))
    unit = weight.abs().double()
    scale = torch.ones(1, dtype=torch.float64)
    if "scale" in streams:
        scale = (
            streams["scale"].double().reshape(-1, *[1] * (weight.ndim - 1))
            if weight.ndim > 1
            else streams["scale"].double()
        )
        unit = unit / torch.where(scale > 0, scale, 1.0)
    exponent = torch.frexp(unit).exponent - 1
    exponent = torch.where(unit > 0, exponent, _SMALLEST_EXPONENT[quantizer.name]).clamp_min(
        _SMALLEST_EXPONENT[quantizer.name]
    )
    return torch.ldexp(scale.expand(weight.shape), exponent - _MANTISSA[quantizer.name])


def _relative(error: torch.Tensor, weight: torch.Tensor) -> float:
    """Norm of the error over the norm of the weights; 0 where there is no error."""
    size, lost = float(weight.double().norm()), float(error.double().norm())
    return lost / size if size > 0 else float(lost > 0)


def _one_more_bit(
    quantizer: Quantizer, streams: Streams, coded: float, master: torch.Tensor | None, importance: torch.Tensor | None
) -> float | None:
    """Bytes that one more bit takes: by the entropy of the masters with one bit more, coded as well as now; or, without
    them, log2 of how much finer the step is for each value. None where no integer quantizer has more bits."""
    if not isinstance(quantizer, IntQuantizer) or quantizer.bits == MAX_BITS:
        return None
    wider = replace(quantizer, bits=quantizer.bits + 1)
    if master is None:
        return streams["q"].numel() * math.log2(wider.q_max / quantizer.q_max) / 8
    now = entropy_bits(streams)
    return coded * (entropy_bits(wider.encode(master, importance)) / now - 1) if now > 0 else 0.0


def _costs(opened: Opened, tensors: list[dict[str, Any]]) -> dict[str, float]:
    """Bytes that the file would grow by: `one_more_layer`, a block like the mean of those that are there (of those
    with an MLP, if the next one has one), and the skip that it may bring; `one_more_bit` for every integer tensor.
    `room` is what is left of 16,000,000 bytes, less the code."""
    config = opened.manifest.run.model
    deeper = replace(config, n_layer=config.n_layer + 1)
    sizes = {row["name"]: row["bytes_coded"] / row["values"] for row in tensors}
    cost = 0.0
    for name, tensor in expected_tensors(deeper, replace(opened.manifest.run.quant, bit_allocation=())).items():
        if name in sizes:
            grown = tensor.values - opened.manifest.tensors[name].values  # the skips
            cost += grown * sizes[name]
        else:
            leaf = name.partition(".")[2].partition(".")[2]
            alike = [
                size for other, size in sizes.items() if other.endswith(f".{leaf}") and other.startswith("blocks.")
            ]
            cost += tensor.values * sum(alike) / len(alike) if alike else tensor.values * 2.0
    bits = sum(row["one_more_bit"] for row in tensors if row["one_more_bit"] is not None)
    return {"one_more_layer": cost, "one_more_bit": bits, "room": float(LIMIT_BYTES - opened.container.file_bytes)}


def _parts(tensors: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    totals: dict[str, dict[str, int]] = {}
    for row in tensors:
        total = totals.setdefault(row["part"], {"values": 0, "bytes_packed": 0})
        total["values"] += row["values"]
        total["bytes_packed"] += row["bytes_packed"]
    return totals
