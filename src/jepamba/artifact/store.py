"""Saving a trained model as an artifact, and loading it again: the logits of both are equal to the bit.

An artifact holds what scoring and generation need (configuration, tokenizer, quantized weights, temperature) and
nothing that training alone needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jepamba.artifact.container import Container, open_container, refusal, write_container
from jepamba.artifact.manifest import TOKENIZER_STREAM, Manifest, Tensor, stored_run, tensors_of
from jepamba.artifact.streams import DTYPES, StreamSpec, Values
from jepamba.config import Run
from jepamba.errors import UserError
from jepamba.model import LanguageModel
from jepamba.quant import Streams, quantizer_named
from jepamba.text import Tokenizer, load_tokenizer

_BITS = {torch.bfloat16: torch.int16, torch.float32: torch.int32}
"""Integer dtype that shows a floating-point tensor's bits to NumPy, which knows no bfloat16."""


@dataclass(frozen=True)
class Artifact:
    """A loaded artifact: a model in evaluation mode, its tokenizer, and the settings to use it with."""

    model: LanguageModel
    tokenizer: Tokenizer
    run: Run
    """Settings of data, model and quant; those of training are at their defaults."""
    temperature: float
    """Logits are divided by it when text is scored."""
    header: dict[str, Any]
    """The manifest as plain values, `extra` included."""


def save_artifact(
    path: Path,
    model: LanguageModel,
    run: Run,
    tokenizer: Tokenizer,
    temperature: float = 1.0,
    extra: dict[str, Any] | None = None,
) -> int:
    """Write `model` and `tokenizer` to `path`, whole or not at all; return the file's bytes.

    Arguments: `run`, of which the settings of data that scoring needs are kept (those of the model are its own);
    `temperature`, in (0.001, 1000); `extra`, JSON-ready notes.
    Raises `UserError` for weights that are not finite, or a file that cannot be written.
    """
    blob = tokenizer.serialize()
    kept = stored_run(run, model.config, model.quant, tokenizer)
    manifest = Manifest(
        kept, tokenizer.kind, len(blob), tokenizer.fingerprint, float(temperature), tensors_of(model), extra or {}
    )
    Manifest.from_header(manifest.to_header())  # never write what would be refused
    exported = model.export_weights()
    values: dict[str, Values] = {TOKENIZER_STREAM: np.frombuffer(blob, dtype=np.uint8)}
    for name, tensor in manifest.tensors.items():
        decoded = quantizer_named(tensor.quantizer).decode(exported[name], tensor.shape)
        if not bool(decoded.isfinite().all()):
            raise UserError(f"{path}: not written: the weights of {name} are not finite (training has diverged)")
        for part, stream in tensor.streams(name).items():
            values[stream.name] = _to_numpy(exported[name][part], stream)
    return write_container(path, manifest.to_header(), _groups(manifest, values))


def load_artifact(path: Path, device: torch.device | str = "cpu") -> Artifact:
    """The artifact at `path`, ready to score and generate on `device`.

    Nothing in the file is executed, and nothing is allocated before the file's declarations are found to agree with
    each other and with the format's limits. Raises `UserError` for any fault: one line that names the file.
    """
    path = Path(path)
    opened = open_artifact(path)
    try:
        weights = {name: _weight(name, tensor, opened.streams) for name, tensor in opened.manifest.tensors.items()}
    except UserError as error:
        raise refusal(path, str(error)) from error
    manifest = opened.manifest
    # Fresh weights are drawn and thrown away: the caller's random numbers must not notice.
    with torch.random.fork_rng(devices=[]):
        model = LanguageModel(manifest.run.model, manifest.run.quant)
    model.load_weights(weights)
    return Artifact(model.to(device).eval(), opened.tokenizer, manifest.run, manifest.temperature, manifest.to_header())


@dataclass(frozen=True)
class Opened:
    """An artifact whose every declaration holds, decoded, but not yet a model."""

    container: Container
    manifest: Manifest
    streams: dict[str, Values]
    tokenizer: Tokenizer


def open_artifact(path: Path) -> Opened:
    """Read, check and decode the artifact at `path`. Raises `UserError` for any fault: one line that names the file."""
    container = open_container(path)
    try:
        manifest = Manifest.from_header(container.header)
        if container.streams != manifest.streams():
            raise UserError("its streams are not those that its parameters and tokenizer need")
        streams = container.decode()
        return Opened(container, manifest, streams, _tokenizer(manifest, streams))
    except UserError as error:
        raise refusal(path, str(error)) from error


def estimate_bytes(model: LanguageModel, tokenizer_bytes: int = 0) -> int:
    """Bytes of `model` with every value packed to its bits, before entropy coding, and of the tokenizer."""
    tensors = tensors_of(model)
    packed = sum(s.packed_bytes for name, tensor in tensors.items() for s in tensor.streams(name).values())
    return packed + tokenizer_bytes


def _groups(manifest: Manifest, values: dict[str, Values]) -> list[list[tuple[StreamSpec, Values]]]:
    """Streams of one kind and role together: like compresses with like, each in the codec that suits it."""
    groups: dict[tuple[str, int, str], list[tuple[StreamSpec, Values]]] = {}
    for name, stream in manifest.streams().items():
        role = name.rpartition("/")[2]
        groups.setdefault((stream.kind, stream.bits, role), []).append((stream, values[name]))
    return list(groups.values())


def _to_numpy(value: torch.Tensor, stream: StreamSpec) -> Values:
    bits = value.contiguous().view(_BITS.get(value.dtype, value.dtype)).cpu().numpy()
    return bits.view(DTYPES[stream.kind]).reshape(stream.shape)


def _to_torch(values: Values, dtype: torch.dtype) -> torch.Tensor:
    bits = _BITS.get(dtype)
    if bits is None:
        return torch.from_numpy(values.copy())
    return torch.from_numpy(values.view(np.dtype(f"i{values.itemsize}")).copy()).view(dtype)


def stored_streams(name: str, tensor: Tensor, streams: dict[str, Values]) -> Streams:
    """The decoded streams of the parameter `name` as its quantizer names them."""
    return {
        part: _to_torch(streams[f"{name}/{part}"], dtype)
        for part, (_, dtype) in quantizer_named(tensor.quantizer).streams(tensor.shape).items()
    }


def _weight(name: str, tensor: Tensor, streams: dict[str, Values]) -> torch.Tensor:
    weight = quantizer_named(tensor.quantizer).decode(stored_streams(name, tensor, streams), tensor.shape)
    if not bool(weight.isfinite().all()):
        raise UserError(f"parameter {name} holds values that are not finite")
    return weight


def _tokenizer(manifest: Manifest, streams: dict[str, Values]) -> Tokenizer:
    blob = streams[TOKENIZER_STREAM].tobytes() if manifest.tokenizer_bytes else b""
    separator = manifest.run.data.byte_separator == "yes"
    tokenizer = load_tokenizer(manifest.tokenizer_kind, blob, separator)
    if tokenizer.fingerprint != manifest.fingerprint:
        raise UserError("its tokenizer is not the one that its header names")
    if (tokenizer.kind == "bytes") != (manifest.run.data.tokenizer == "bytes") or tokenizer.separator != separator:
        raise UserError("its tokenizer is of another kind than its configuration says")
    if tokenizer.vocab_size > manifest.run.model.vocab_size:
        raise UserError(
            f"its tokenizer has {tokenizer.vocab_size:,} symbols, its model {manifest.run.model.vocab_size:,}"
        )
    return tokenizer
