"""The manifest: what an artifact's header says, as checked Python values.

`Manifest.to_header` and `Manifest.from_header` are each other's inverse. Everything a reader needs to judge a file is
here, before a single stream is decoded or a single weight allocated.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch

from jepamba.artifact.container import MAX_STREAMS
from jepamba.artifact.streams import STREAM_BITS, StreamSpec
from jepamba.artifact.strict_json import take, take_count
from jepamba.config import Model, Quant, Run, from_dict, to_dict
from jepamba.errors import UserError
from jepamba.model import LanguageModel
from jepamba.quant import FloatQuantizer, IntQuantizer, Quantizer, quantizer_named
from jepamba.text import Tokenizer

MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-3, 1e3
"""The temperatures that a model may be scored at: beyond them its figures say nothing."""
TOKENIZER_STREAM = "tokenizer"
"""Name of the stream that holds the tokenizer's own file; absent where that is empty (bytes)."""

MAX_PARAMETERS = 1 << 28
MAX_TOKENIZER_BYTES = 64 << 20
MAX_SEQUENCE = 1 << 20
MAX_SIZE = 65536
"""Of every integer in the model's configuration."""
MAX_STATE = 1 << 24
"""Values of one block's recurrent state: a file may be small and still ask for any amount of memory here."""
MAX_CHUNK = 4096
"""The chunked operator makes chunk × chunk matrices."""

_KEPT_DATA = ("tokenizer", "byte_separator", "seq_len", "reset")


@dataclass(frozen=True)
class Tensor:
    """A stored parameter: the name of its quantizer, and its shape."""

    quantizer: str
    shape: tuple[int, ...]

    @property
    def values(self) -> int:
        """Number of parameters."""
        return prod(self.shape)

    def streams(self, name: str) -> dict[str, StreamSpec]:
        """The streams of the parameter `name`, by the quantizer's own names for them."""
        quantizer = quantizer_named(self.quantizer)
        return {
            part: _stream(f"{name}/{part}", quantizer, shape, dtype)
            for part, (shape, dtype) in quantizer.streams(self.shape).items()
        }


def _stream(name: str, quantizer: Quantizer, shape: tuple[int, ...], dtype: torch.dtype) -> StreamSpec:
    if isinstance(quantizer, IntQuantizer) and dtype == torch.int8:
        return StreamSpec(name, "int", quantizer.bits, shape)
    if dtype == torch.uint8:
        return StreamSpec(name, "fp8", 8, shape)
    kind = FloatQuantizer(dtype).name
    return StreamSpec(name, kind, STREAM_BITS[kind][0], shape)


@dataclass(frozen=True)
class Manifest:
    """Configuration, tokenizer, temperature and table of parameters of an artifact."""

    run: Run
    """Settings that scoring and generation need; those of training are at their defaults."""
    tokenizer_kind: str
    tokenizer_bytes: int
    fingerprint: str
    temperature: float
    """Logits are divided by it when text is scored."""
    tensors: dict[str, Tensor]
    """Every parameter by its name in the model."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Whatever the writer found worth noting; nothing depends on it."""

    def streams(self) -> dict[str, StreamSpec]:
        """Every stream that must be in the container, by name."""
        named = {s.name: s for name, tensor in self.tensors.items() for s in tensor.streams(name).values()}
        if self.tokenizer_bytes:
            named[TOKENIZER_STREAM] = StreamSpec(TOKENIZER_STREAM, "u8", 8, (self.tokenizer_bytes,))
        return named

    def to_header(self) -> dict[str, Any]:
        """The manifest as JSON-ready values."""
        rooms = to_dict(self.run)
        return {
            "config": {
                "data": {key: rooms["data"][key] for key in _KEPT_DATA},
                "model": rooms["model"],
                "quant": rooms["quant"],
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
        """The manifest in `header`. Raises `UserError` for anything missing, unknown, mistyped or out of bounds, and
        where the parameters are not exactly those of the model that the configuration describes."""
        unknown = header.keys() - {"config", "tokenizer", "temperature", "tensors", "extra"}
        if unknown:
            raise UserError(f"its header has the unknown key {min(unknown)[:40]!r}")
        run = _run(take(header, "config", dict))
        tokenizer = take(header, "tokenizer", dict)
        temperature = take(header, "temperature", float)
        if not MIN_TEMPERATURE <= temperature <= MAX_TEMPERATURE:
            raise UserError(f"its temperature {temperature} is not between {MIN_TEMPERATURE:g} and {MAX_TEMPERATURE:g}")
        tensors = _tensors(take(header, "tensors", list))
        check_config(run.model, run.data.seq_len, len(tensors))
        if tensors != expected_tensors(run.model, run.quant):
            raise UserError("its parameters are not those of the model that its configuration describes")
        return cls(
            run,
            take(tokenizer, "kind", str, "tokenizer"),
            take_count(tokenizer, "bytes", MAX_TOKENIZER_BYTES, "tokenizer"),
            take(tokenizer, "fingerprint", str, "tokenizer"),
            temperature,
            tensors,
            take(header, "extra", dict),
        )


def stored_run(run: Run, model: Model, quant: Quant, tokenizer: Tokenizer) -> Run:
    """`run` less all that training alone needs: those settings return to their defaults, and paths are left out."""
    data = {
        "tokenizer": "bytes" if tokenizer.kind == "bytes" else "bpe",
        "byte_separator": "yes" if tokenizer.separator else "no",
        "seq_len": run.data.seq_len,
        "reset": run.data.reset,
    }
    return _with_defaults({"data": data, "model": dataclasses.asdict(model), "quant": dataclasses.asdict(quant)})


def _with_defaults(config: dict[str, Any]) -> Run:
    """The `Run` of a stored configuration. What only training reads is set so that no check of it can fail."""
    seq_len = config["data"]["seq_len"]
    training = {"tokens_per_step": seq_len, "tokens_per_micro": seq_len, "steps": 1}
    return from_dict({**config, "train": training, "jepa": {"weight": 0.0}})


def _run(config: dict[str, Any]) -> Run:
    if config.keys() != {"data", "model", "quant"}:
        raise UserError("its configuration must have the sections data, model and quant and no other")
    data = take(config, "data", dict, "configuration")
    if data.keys() != set(_KEPT_DATA):
        raise UserError(f"its configuration must have {', '.join(_KEPT_DATA)} under data and no other")
    take_count(data, "seq_len", MAX_SEQUENCE, "configuration")
    config = {room: take(config, room, dict, "configuration") for room in config}
    for room, cls in (("model", Model), ("quant", Quant)):
        absent = {f.name for f in dataclasses.fields(cls)} - config[room].keys()
        if absent:
            raise UserError(f"its configuration lacks {room}.{min(absent)}")
    try:
        return _with_defaults(config)
    except (OverflowError, ValueError, TypeError, ArithmeticError) as error:
        raise UserError(f"its configuration makes no sense ({error})") from error


def check_config(model: Model, seq_len: int, tensors: int) -> None:
    """Bound what a configuration can ask for before a model is built from it, even one without storage.

    `tensors` is the number of parameters' names in the file, which a model of many layers must have too.
    Raises `UserError`.
    """
    for key in dataclasses.fields(model):
        value = getattr(model, key.name)
        if type(value) is int and value > MAX_SIZE:
            raise UserError(f"its configuration has model.{key.name} = {str(value)[:24]}, more than {MAX_SIZE:,}")
    if model.vocab_size < 1:
        raise UserError("its configuration has no vocabulary size")
    if model.n_layer * 8 > tensors:  # every block has more than 8
        raise UserError(f"its configuration has {model.n_layer:,} layers and its table {tensors:,} parameters")
    if model.d_intermediate > MAX_SIZE * 16 or model.d_inner > MAX_SIZE:
        raise UserError("its configuration describes a model too wide to load")
    if model.d_inner * model.d_state > MAX_STATE or model.chunk_size > MAX_CHUNK:
        raise UserError("its configuration asks for more working memory than the format allows")
    if not 2 <= seq_len <= MAX_SEQUENCE:
        raise UserError(f"its configuration has data.seq_len = {seq_len}")


def expected_tensors(config: Model, quant: Quant) -> dict[str, Tensor]:
    """Quantizer and shape of every parameter of the model that `config` and `quant` describe, without allocating it."""
    with torch.device("meta"):
        model = LanguageModel(config, quant)
    return tensors_of(model)


def tensors_of(model: LanguageModel) -> dict[str, Tensor]:
    """Quantizer and shape of every parameter of `model`, in the model's order."""
    return {name: Tensor(weight.quantizer.name, tuple(weight.master.shape)) for name, weight in model.weights().items()}


def _tensors(rows: list[Any]) -> dict[str, Tensor]:
    """The table of parameters. Checks types and sizes alone; `from_header` compares names and quantizers."""
    if len(rows) > MAX_STREAMS:
        raise UserError(f"it declares {len(rows):,} parameters' names, the format allows {MAX_STREAMS:,}")
    tensors: dict[str, Tensor] = {}
    for row in rows:
        if not isinstance(row, dict) or row.keys() != {"name", "quantizer", "shape"}:
            raise UserError("its table of parameters holds something other than name, quantizer and shape")
        name, shape = take(row, "name", str, "table of parameters"), take(row, "shape", list, "table of parameters")
        if len(shape) > 8 or not all(type(size) is int and 0 < size <= MAX_PARAMETERS for size in shape):
            raise UserError(f"parameter {name[:80]!r} has an impossible shape")
        if name in tensors:
            raise UserError(f"parameter {name[:80]!r} appears twice")
        tensors[name] = Tensor(take(row, "quantizer", str, "table of parameters"), tuple(shape))
    if sum(tensor.values for tensor in tensors.values()) > MAX_PARAMETERS:
        raise UserError(f"it declares more than {MAX_PARAMETERS:,} parameters")
    return tensors
