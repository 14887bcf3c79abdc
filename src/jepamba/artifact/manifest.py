"""The manifest, the validated content of an artifact's header.

`Manifest.from_header` inverts `Manifest.to_header`. It checks everything that can be checked before a stream is decoded
or a weight is allocated.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch

from jepamba.artifact.container import MAX_STREAMS
from jepamba.artifact.streams import STREAM_BITS, StreamSpec
from jepamba.artifact.strict_json import read_count, read_field
from jepamba.config import Model, Quant, Run, from_dict, to_dict
from jepamba.errors import UserError
from jepamba.model import LanguageModel
from jepamba.quant import FloatQuantizer, Fp8Quantizer, IntQuantizer, Quantizer, quantizer_named
from jepamba.text import Tokenizer

MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-3, 1e3
"""Range of temperatures for scoring. Scores at other temperatures are meaningless."""
TOKENIZER_STREAM = "tokenizer"
"""Name of the stream with the tokenizer file. A tokenizer without a file (bytes) has no stream."""

MAX_PARAMETERS = 1 << 28
MAX_TOKENIZER_BYTES = 64 << 20
MAX_SEQUENCE = 1 << 20
MAX_SIZE = 65536
"""Maximum of each integer in the model's configuration."""
MAX_STATE = 1 << 24
"""Maximum number of values of a block's recurrent state, whose memory the size of the file does not bound."""
MAX_CHUNK = 4096
"""Maximum chunk size. The chunked operator allocates chunk × chunk matrices."""

_DATA_SETTINGS = ("tokenizer", "byte_separator", "seq_len", "reset")
_LATER_SETTINGS = {"attention_every", "attention_window"}
"""Settings that artifacts of earlier code lack. Their defaults are what that code did."""


@dataclass(frozen=True)
class StoredTensor:
    """The quantizer's name and the shape of a stored parameter."""

    quantizer: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of values."""
        return prod(self.shape)

    def streams(self, name: str) -> dict[str, StreamSpec]:
        """Return the streams of the parameter `name`, by the quantizer's names for them."""
        quantizer = quantizer_named(self.quantizer)
        return {
            role: _stream(f"{name}/{role}", quantizer, shape, dtype)
            for role, (shape, dtype) in quantizer.streams(self.shape).items()
        }


def _stream(name: str, quantizer: Quantizer, shape: tuple[int, ...], dtype: torch.dtype) -> StreamSpec:
    if isinstance(quantizer, IntQuantizer) and dtype == torch.int8:
        return StreamSpec(name, "int", quantizer.bits, shape)
    if isinstance(quantizer, Fp8Quantizer) and dtype == torch.uint8:
        return StreamSpec(name, "fp8", 8, shape)
    # Values, and the scales of integers and of FP8.
    if dtype in (torch.bfloat16, torch.float32):
        kind = FloatQuantizer(dtype).name
        return StreamSpec(name, kind, STREAM_BITS[kind][0], shape)
    raise TypeError(f"{name}: the artifact has no kind of stream for {dtype} of {quantizer.name}")


@dataclass(frozen=True)
class Manifest:
    """Configuration, tokenizer, temperature and parameters of an artifact."""

    run: Run
    """The settings for scoring and generation. Those of training have their defaults."""
    tokenizer_kind: str
    tokenizer_bytes: int
    fingerprint: str
    temperature: float
    """Divisor of the logits for scoring."""
    tensors: dict[str, StoredTensor]
    """All parameters by name."""
    extra: dict[str, Any] = field(default_factory=dict)
    """JSON-ready notes, which nothing depends on."""

    def streams(self) -> dict[str, StreamSpec]:
        """Return the streams that the container must have, by name."""
        named = {s.name: s for name, tensor in self.tensors.items() for s in tensor.streams(name).values()}
        if self.tokenizer_bytes:
            named[TOKENIZER_STREAM] = StreamSpec(TOKENIZER_STREAM, "u8", 8, (self.tokenizer_bytes,))
        return named

    def to_header(self) -> dict[str, Any]:
        """Return the manifest as JSON-ready values."""
        config = to_dict(self.run)
        return {
            "config": {
                "data": {key: config["data"][key] for key in _DATA_SETTINGS},
                "model": config["model"],
                "quant": config["quant"],
            },
            "tokenizer": {
                "kind": self.tokenizer_kind,
                "bytes": self.tokenizer_bytes,
                "fingerprint": self.fingerprint,
            },
            "temperature": self.temperature,
            "tensors": [
                {"name": name, "quantizer": tensor.quantizer, "shape": list(tensor.shape)}
                for name, tensor in self.tensors.items()
            ],
            "extra": self.extra,
        }

    @classmethod
    def from_header(cls, header: dict[str, Any]) -> Manifest:
        """Return the manifest in `header`.

        Raises `UserError` for a missing or unknown key, a wrong type, a value out of range, and for parameters that are
        not exactly those of the configured model.
        """
        unknown = header.keys() - {"config", "tokenizer", "temperature", "tensors", "extra"}
        if unknown:
            raise UserError(f"its header has the unknown key {min(unknown)[:40]!r}")
        run = _run(read_field(header, "config", dict))
        tokenizer = read_field(header, "tokenizer", dict)
        temperature = read_field(header, "temperature", float)
        if not MIN_TEMPERATURE <= temperature <= MAX_TEMPERATURE:
            raise UserError(f"its temperature {temperature} is not between {MIN_TEMPERATURE:g} and {MAX_TEMPERATURE:g}")
        tensors = _tensors(read_field(header, "tensors", list))
        check_config(run.model, run.data.seq_len, len(tensors))
        if tensors != expected_tensors(run.model, run.quant):
            raise UserError("its parameters are not those of the configured model")
        return cls(
            run,
            read_field(tokenizer, "kind", str, "tokenizer"),
            read_count(tokenizer, "bytes", MAX_TOKENIZER_BYTES, "tokenizer"),
            read_field(tokenizer, "fingerprint", str, "tokenizer"),
            temperature,
            tensors,
            read_field(header, "extra", dict),
        )


def stored_run(run: Run, model: Model, quant: Quant, tokenizer: Tokenizer) -> Run:
    """Return `run` without paths, and with defaults for all settings that only training needs."""
    data = {
        "tokenizer": "bytes" if tokenizer.kind == "bytes" else "bpe",
        "byte_separator": "yes" if tokenizer.separator else "no",
        "seq_len": run.data.seq_len,
        "reset": run.data.reset,
    }
    return _with_defaults({"data": data, "model": dataclasses.asdict(model), "quant": dataclasses.asdict(quant)})


def _with_defaults(config: dict[str, Any]) -> Run:
    """Return the `Run` of a stored configuration. The settings of training are chosen so that every check passes."""
    seq_len = config["data"]["seq_len"]
    training = {"tokens_per_step": seq_len, "tokens_per_micro": seq_len, "steps": 1}
    return from_dict({**config, "train": training, "jepa": {"weight": 0.0}})


def _run(config: dict[str, Any]) -> Run:
    if config.keys() != {"data", "model", "quant"}:
        raise UserError("its configuration must have exactly the sections data, model and quant")
    data = read_field(config, "data", dict, "configuration")
    if data.keys() != set(_DATA_SETTINGS):
        raise UserError(f"its section data must have exactly the settings {', '.join(_DATA_SETTINGS)}")
    read_count(data, "seq_len", MAX_SEQUENCE, "configuration")
    config = {section: read_field(config, section, dict, "configuration") for section in config}
    for section, cls in (("model", Model), ("quant", Quant)):
        missing = {f.name for f in dataclasses.fields(cls)} - config[section].keys() - _LATER_SETTINGS
        if missing:
            raise UserError(f"its configuration lacks {section}.{min(missing)}")
    try:
        return _with_defaults(config)
    except (OverflowError, ValueError, TypeError, ArithmeticError) as error:
        raise UserError(f"its configuration is invalid ({error})") from error


def check_config(model: Model, seq_len: int, tensors: int) -> None:
    """Raise `UserError` if the configured model exceeds the limits of the format. Call it before building a model.

    `tensors` is the number of parameters in the header. It bounds the number of layers.
    """
    for key in dataclasses.fields(model):
        value = getattr(model, key.name)
        if type(value) is int and value > MAX_SIZE:
            raise UserError(f"its configuration has model.{key.name} = {str(value)[:24]}, more than {MAX_SIZE:,}")
    if model.vocab_size < 1:
        raise UserError("its configuration has no vocabulary size")
    if model.n_layer * 4 > tensors:  # every block has at least 4 parameters
        raise UserError(f"its configuration has {model.n_layer:,} layers and its table {tensors:,} parameters")
    if model.d_intermediate > MAX_SIZE * 16 or model.d_inner > MAX_SIZE:
        raise UserError("its configuration describes a model too wide to load")
    if model.d_inner * model.d_state > MAX_STATE or model.chunk_size > MAX_CHUNK:
        raise UserError("its configuration requires more working memory than the format allows")
    if not 2 <= seq_len <= MAX_SEQUENCE:
        raise UserError(f"its configuration has data.seq_len = {seq_len}")


def expected_tensors(config: Model, quant: Quant) -> dict[str, StoredTensor]:
    """Return the parameters of the model that `config` and `quant` describe, without allocating it."""
    with torch.device("meta"):
        model = LanguageModel(config, quant)
    return stored_tensors(model)


def stored_tensors(model: LanguageModel) -> dict[str, StoredTensor]:
    """Return quantizer and shape of every parameter of `model`, by name, in the model's order."""
    weights = model.quant_weights().items()
    return {name: StoredTensor(weight.quantizer.name, tuple(weight.master.shape)) for name, weight in weights}


def _tensors(rows: list[Any]) -> dict[str, StoredTensor]:
    """Return the parameters in the header. Checks types and sizes; `from_header` checks names and quantizers."""
    if len(rows) > MAX_STREAMS:
        raise UserError(f"it declares {len(rows):,} named parameters, the format allows {MAX_STREAMS:,}")
    where = "table of parameters"
    tensors: dict[str, StoredTensor] = {}
    for row in rows:
        if not isinstance(row, dict) or row.keys() != {"name", "quantizer", "shape"}:
            raise UserError("its table of parameters must have exactly name, quantizer and shape")
        name, quantizer = read_field(row, "name", str, where), read_field(row, "quantizer", str, where)
        shape = read_field(row, "shape", list, where)
        if len(shape) > 8 or not all(type(size) is int and 0 < size <= MAX_PARAMETERS for size in shape):
            raise UserError(f"parameter {name[:80]!r} has an impossible shape")
        if name in tensors:
            raise UserError(f"parameter {name[:80]!r} appears twice")
        tensors[name] = StoredTensor(quantizer, tuple(shape))
    if sum(tensor.numel for tensor in tensors.values()) > MAX_PARAMETERS:
        raise UserError(f"it declares more than {MAX_PARAMETERS:,} parameters")
    return tensors
