"""Description of an artifact: quantizer, bytes and rounding error of each parameter, and totals by model part."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jepamba.artifact.manifest import StoredTensor, expected_tensors
from jepamba.artifact.store import OpenedArtifact, open_artifact, stored_streams
from jepamba.artifact.streams import StreamSpec, Values
from jepamba.errors import UserError
from jepamba.model import component_of
from jepamba.quant import MAX_BITS, IntQuantizer, Quantizer, Streams, quantizer_named
from jepamba.quant.entropy import entropy, entropy_bits

LIMIT_BYTES = 16_000_000
"""Maximum bytes of code and artifact of a submission to the 16 MB challenge (openai/parameter-golf)."""

Masters = Mapping[str, torch.Tensor]
"""Tensors of a checkpoint: the master weight `NAME.master`."""


def inspect(path: Path, masters: Masters | None = None) -> dict[str, Any]:
    """Return a JSON-ready description of the artifact at `path`.

    Arguments:
        masters: The weights before rounding, for the measured rounding errors.

    Returns: a dictionary with these keys, among others:
        bytes, compressed_bytes: Bytes of the file, and of the compressed streams in it.
        blocks, codecs: The codec and the sizes of each block, and the distinct codecs.
        parameters, tensors: Number of parameters, and a row for each parameter tensor (see `_row`).
        parts, bytes_by_part: Totals by part of the model. The packed bytes of the parts and of the tokenizer sum to
            `packed_bytes`.
        costs: Bytes of one more layer, of one more bit, and those that remain (see `_costs`).
        masters_are_its_own: Whether rounding `masters` gives exactly this artifact; None without masters.

    Raises `UserError` for an invalid artifact, and for masters of another model.
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
        "parameters": sum(tensor.numel for tensor in manifest.tensors.values()),
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


def _check_masters(masters: Masters, tensors: Mapping[str, StoredTensor]) -> None:
    for name, tensor in tensors.items():
        master = masters.get(f"{name}.master")
        if master is None or tuple(master.shape) != tensor.shape:
            raise UserError(
                f"the checkpoint belongs to another model than the artifact: it has no {name} of the same shape"
            )


def _shares(opened: OpenedArtifact) -> dict[str, float]:
    """Return the bytes of each stream in the file: those of its block, in proportion to the order-0 entropies."""
    shares: dict[str, float] = {}
    for block in opened.container.blocks:
        # A constant stream has zero entropy, but still takes some bytes.
        bits = {s.name: entropy_bits({"": _tensor(opened.streams[s.name])}) + 1.0 for s in block.streams}
        total = sum(bits.values())
        shares |= {name: block.length * own_bits / total for name, own_bits in bits.items()}
    return shares


def _tensor(values: Values) -> torch.Tensor:
    return torch.from_numpy(values.copy())


def _row(
    name: str, tensor: StoredTensor, streams: dict[str, Values], shares: dict[str, float], masters: Masters | None
) -> dict[str, Any]:
    """Return the row of one parameter: name, part, shape, quantizer, number of values, and

    - `bytes_packed`, `bits_per_value`: with scales, before compression;
    - `bytes_coded`, `bits_coded`: its bytes in the compressed file, and these in bits per value;
    - `entropy`: order-0 entropy of the stored values in bits per value, without scales;
    - `zeros`: fraction of values that are 0;
    - `at_largest`: fraction of values with the quantizer's largest magnitude; None for plain floating point;
    - `expected_error`: RMS of the rounding error over the RMS of the weights, for errors that are uniform in each
      quantizer step (step / √12);
    - `error`: the measured error; None without masters;
    - `one_more_bit`: bytes that one more bit for its integers would add, by the entropy of the masters. Without them,
      log2 of the ratio of the steps is used, which holds at high resolution.
    """
    described = tensor.streams(name)
    packed = sum(stream.packed_bytes for stream in described.values())
    role = next(role for role in ("q", "fp8", "value") if role in described)
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
        "values": tensor.numel,
        "bytes_packed": packed,
        "bits_per_value": 8 * packed / tensor.numel,
        "bytes_coded": coded,
        "bits_coded": 8 * coded / tensor.numel,
        "entropy": entropy(counts),
        "zeros": _zeros(described[role], values),
        "at_largest": None if largest is None else float(largest.double().mean()),
        "expected_error": _relative(steps / math.sqrt(12), weight),
        "error": None,
    }
    master = None
    if masters is not None:
        master = masters[f"{name}.master"].float()
        row["error"] = _relative(weight - master, master)
        reencoded = quantizer.encode(master)
        row["same"] = all(torch.equal(reencoded[role], value) for role, value in encoded.items())
    return row | {"one_more_bit": _one_more_bit(quantizer, encoded, coded, master)}


def _zeros(stream: StreamSpec, values: Values) -> float:
    """Return the fraction of zeros."""
    if stream.kind == "int":
        return float((values == 0).mean())
    return float(((values & ((1 << (stream.bits - 1)) - 1)) == 0).mean())  # without the sign


def _at_largest(stream: StreamSpec, values: Values) -> torch.Tensor | None:
    """Return whether each value has the quantizer's largest magnitude; None for plain floating point."""
    if stream.kind == "int":
        return _tensor(np.abs(values) == 2 ** (stream.bits - 1) - 1)
    if stream.kind == "fp8":
        return _tensor((values & 0x7F) == 0x7E)  # e4m3 without its sign; 0x7e is 448, 0x7f is NaN
    return None


_MANTISSA = {"fp8": 3, "fp8-row": 3, "bf16": 7, "fp32": 23}
_MIN_EXPONENT = {"fp8": -6, "fp8-row": -6, "bf16": -126, "fp32": -126}


def _steps(quantizer: Quantizer, streams: Streams, weight: torch.Tensor) -> torch.Tensor:
    """Return the quantizer step at each stored value, in the shape of the weight."""
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
    exponent = torch.where(unit > 0, exponent, _MIN_EXPONENT[quantizer.name]).clamp_min(_MIN_EXPONENT[quantizer.name])
    return torch.ldexp(scale.expand(weight.shape), exponent - _MANTISSA[quantizer.name])


def _relative(error: torch.Tensor, weight: torch.Tensor) -> float:
    """Return the norm of the error over the norm of the weights; 0 without an error."""
    weight_norm, error_norm = float(weight.double().norm()), float(error.double().norm())
    return error_norm / weight_norm if weight_norm > 0 else float(error_norm > 0)


def _one_more_bit(quantizer: Quantizer, streams: Streams, coded: float, master: torch.Tensor | None) -> float | None:
    """Return the bytes that one more bit per integer adds (see `_row`).

    None for floating point, and for integers that already have the maximum of bits.
    """
    if not isinstance(quantizer, IntQuantizer) or quantizer.bits == MAX_BITS:
        return None
    wider = replace(quantizer, bits=quantizer.bits + 1)
    if master is None:
        return streams["q"].numel() * math.log2(wider.q_max / quantizer.q_max) / 8
    now = entropy_bits(streams)
    return coded * (entropy_bits(wider.encode(master)) / now - 1) if now > 0 else 0.0


def _costs(opened: OpenedArtifact, tensors: list[dict[str, Any]]) -> dict[str, float]:
    """Return the bytes that a change would add to the file, and the bytes that remain.

    - `one_more_layer`: another block, whose tensors take the mean bits per value of the same tensors in the present
      blocks, and the skip that it may add;
    - `one_more_bit`: one more bit for every integer tensor;
    - `remaining_bytes`: 16,000,000 bytes minus the artifact, without the code.
    """
    config = opened.manifest.run.model
    deeper = replace(config, n_layer=config.n_layer + 1)
    sizes = {row["name"]: row["bytes_coded"] / row["values"] for row in tensors}
    cost = 0.0
    for name, tensor in expected_tensors(deeper, replace(opened.manifest.run.quant, bit_allocation=())).items():
        if name in sizes:
            added = tensor.numel - opened.manifest.tensors[name].numel  # the skips
            cost += added * sizes[name]
        else:
            leaf = name.partition(".")[2].partition(".")[2]
            similar = [
                size for other, size in sizes.items() if other.endswith(f".{leaf}") and other.startswith("blocks.")
            ]
            cost += tensor.numel * sum(similar) / len(similar) if similar else tensor.numel * 2.0
    bits = sum(row["one_more_bit"] for row in tensors if row["one_more_bit"] is not None)
    remaining = float(LIMIT_BYTES - opened.container.file_bytes)
    return {"one_more_layer": cost, "one_more_bit": bits, "remaining_bytes": remaining}


def _parts(tensors: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    totals: dict[str, dict[str, int]] = {}
    for row in tensors:
        total = totals.setdefault(row["part"], {"values": 0, "bytes_packed": 0})
        total["values"] += row["values"]
        total["bytes_packed"] += row["bytes_packed"]
    return totals
