"""Save a trained model as an artifact, and load it. The loaded model has bit-identical logits.

An artifact holds what scoring and generation need: configuration, tokenizer, quantized weights and temperature.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jepamba.artifact.container import Container, invalid_artifact, open_container, write_container
from jepamba.artifact.manifest import TOKENIZER_STREAM, Manifest, StoredTensor, stored_run, stored_tensors
from jepamba.artifact.streams import DTYPES, StreamSpec, Values
from jepamba.config import Run
from jepamba.errors import UserError
from jepamba.model import LanguageModel
from jepamba.quant import Streams, quantizer_named
from jepamba.text import Tokenizer, load_tokenizer

_BITS = {torch.bfloat16: torch.int16, torch.float32: torch.int32}
"""Integer dtype for the bits of a floating-point tensor in NumPy, which lacks bfloat16."""


@dataclass(frozen=True)
class Artifact:
    """A loaded artifact: the model in evaluation mode, its tokenizer and its settings."""

    model: LanguageModel
    tokenizer: Tokenizer
    run: Run
    """The settings of data, model and quant. Those of training have their defaults."""
    temperature: float
    """Divisor of the logits for scoring."""
    header: dict[str, Any]
    """The manifest as JSON-ready values, including `extra`."""


def save_artifact(
    path: Path,
    model: LanguageModel,
    run: Run,
    tokenizer: Tokenizer,
    temperature: float = 1.0,
    extra: dict[str, Any] | None = None,
) -> int:
    """Write `model` and `tokenizer` to `path` atomically, and return the size of the file in bytes.

    Arguments:
        run: Source of the settings of data. Those of model and quant are taken from `model`.
        temperature: Divisor of the logits for scoring, in [0.001, 1000].
        extra: JSON-ready notes.

    Raises `UserError` for weights that are not finite, and for a file that cannot be written.
    """
    blob = tokenizer.serialize()
    stored = stored_run(run, model.config, model.quant, tokenizer)
    manifest = Manifest(
        stored, tokenizer.kind, len(blob), tokenizer.fingerprint, float(temperature), stored_tensors(model), extra or {}
    )
    Manifest.from_header(manifest.to_header())  # never write a file that would be refused
    exported = model.export_weights()
    values: dict[str, Values] = {TOKENIZER_STREAM: np.frombuffer(blob, dtype=np.uint8)}
    for name, tensor in manifest.tensors.items():
        decoded = quantizer_named(tensor.quantizer).decode(exported[name], tensor.shape)
        if not bool(decoded.isfinite().all()):
            raise UserError(f"{path}: not written: the weights of {name} are not finite (training has diverged)")
        for role, stream in tensor.streams(name).items():
            values[stream.name] = _to_numpy(exported[name][role], stream)
    return write_container(path, manifest.to_header(), _groups(manifest, values))


def load_artifact(path: Path, device: torch.device | str = "cpu") -> Artifact:
    """Load the artifact at `path` for scoring and generation on `device`.

    Nothing in the file is executed. Its declarations are checked against each other and against the limits of the
    format before memory is allocated. Raises `UserError`, one line that names the file, if it is invalid.
    """
    path = Path(path)
    opened = open_artifact(path)
    try:
        weights = {name: _weight(name, tensor, opened.streams) for name, tensor in opened.manifest.tensors.items()}
    except UserError as error:
        raise invalid_artifact(path, str(error)) from error
    manifest = opened.manifest
    # Without initial weights, which take time and change the caller's random state.
    with torch.device("meta"):
        model = LanguageModel(manifest.run.model, manifest.run.quant)
    model.load_weights(weights)
    return Artifact(model.to(device).eval(), opened.tokenizer, manifest.run, manifest.temperature, manifest.to_header())


@dataclass(frozen=True)
class OpenedArtifact:
    """The validated and decoded content of an artifact, without a model."""

    container: Container
    manifest: Manifest
    streams: dict[str, Values]
    tokenizer: Tokenizer


def open_artifact(path: Path) -> OpenedArtifact:
    """Read, check and decode the artifact at `path`. Raises `UserError`, which names the file, if it is invalid."""
    container = open_container(path)
    try:
        manifest = Manifest.from_header(container.header)
        if container.streams != manifest.streams():
            raise UserError("its streams are not those that its parameters and tokenizer need")
        streams = container.decode()
        return OpenedArtifact(container, manifest, streams, _tokenizer(manifest, streams))
    except UserError as error:
        raise invalid_artifact(path, str(error)) from error


def estimate_bytes(model: LanguageModel, tokenizer_bytes: int = 0) -> int:
    """Return the bytes of `model` with packed values, without entropy coding, plus those of the tokenizer."""
    tensors = stored_tensors(model)
    packed = sum(s.packed_bytes for name, tensor in tensors.items() for s in tensor.streams(name).values())
    return packed + tokenizer_bytes


def _groups(manifest: Manifest, values: dict[str, Values]) -> list[list[tuple[StreamSpec, Values]]]:
    """Group the streams by kind, bits and role, since similar values compress best together."""
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


def stored_streams(name: str, tensor: StoredTensor, streams: dict[str, Values]) -> Streams:
    """Return the decoded streams of the parameter `name`, by the quantizer's names for them."""
    return {
        role: _to_torch(streams[f"{name}/{role}"], dtype)
        for role, (_, dtype) in quantizer_named(tensor.quantizer).streams(tensor.shape).items()
    }


def _weight(name: str, tensor: StoredTensor, streams: dict[str, Values]) -> torch.Tensor:
    weight = quantizer_named(tensor.quantizer).decode(stored_streams(name, tensor, streams), tensor.shape)
    # One pass; `isfinite` would make three tensors of the size of the weight.
    if not all(math.isfinite(bound) for bound in weight.aminmax()):
        raise UserError(f"parameter {name} holds values that are not finite")
    return weight


def _tokenizer(manifest: Manifest, streams: dict[str, Values]) -> Tokenizer:
    blob = streams[TOKENIZER_STREAM].tobytes() if manifest.tokenizer_bytes else b""
    separator = manifest.run.data.byte_separator == "yes"
    tokenizer = load_tokenizer(manifest.tokenizer_kind, blob, separator)
    if tokenizer.fingerprint != manifest.fingerprint:
        raise UserError("its tokenizer does not have the fingerprint in its header")
    if (tokenizer.kind == "bytes") != (manifest.run.data.tokenizer == "bytes") or tokenizer.separator != separator:
        raise UserError("its tokenizer differs from its configuration")
    if tokenizer.vocab_size > manifest.run.model.vocab_size:
        raise UserError(
            f"its tokenizer has {tokenizer.vocab_size:,} symbols, its model {manifest.run.model.vocab_size:,}"
        )
    return tokenizer
