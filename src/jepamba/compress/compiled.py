"""The model's steps and the range coder in C++ (`kernels.cpp`), for 16 lanes at a time.

Legend: W lanes of a batch, A lanes of it that have not ended, R rows and K columns of a matrix.
"""

from __future__ import annotations

import ctypes
import hashlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from jepamba.artifact import Artifact
from jepamba.compress.lanes import COMPILED, probe_tokens
from jepamba.compress.range_coder import section, section_words
from jepamba.errors import UserError
from jepamba.evaluate.stored import stored
from jepamba.model import LanguageModel
from jepamba.model.language_model import Block
from jepamba.model.layers import QuantLinear
from jepamba.model.mixer import Mamba2
from jepamba.ops.cpp import LANES, library, pointer
from jepamba.ops.dispatch import kernels_enabled
from jepamba.ops.norms import GATED_NORM_EPS, RMS_EPS
from jepamba.quant import QuantWeight

_TILE = 24
"""As in the kernels."""
_CAPS = ("off", "tanh", "poly")
"""Soft caps by their number in the kernels."""
_POINTER, _INT = ctypes.c_void_p, ctypes.c_int64


def is_supported(model: LanguageModel) -> bool:
    """Whether the compiled steps support `model` (no attention), and could be compiled."""
    return not model.config.attention_every and kernels_enabled() and _kernels() is not None


def _kernels() -> ctypes.CDLL | None:
    kernels = library(Path(__file__).parent / "kernels.cpp", ("-ffp-contract=off",))
    if kernels is not None:
        kernels.lanes_size.restype = kernels.probabilities_at.restype = _INT
        kernels.step.argtypes = [_POINTER] * 3
        kernels.code.argtypes, kernels.code.restype = [_POINTER, _POINTER, _POINTER, _INT, _POINTER], ctypes.c_double
    return kernels


def _structure(name: str, **fields: object) -> type[ctypes.Structure]:
    """Return a structure of the kernels."""
    return type(name, (ctypes.Structure,), {"_fields_": list(fields.items())})


def _each(names: str, kind: object) -> dict[str, object]:
    return dict.fromkeys(names.split(), kind)


_Matrix = _structure("Matrix", tiles=_POINTER, rows=_INT, columns=_INT)
_Layer = _structure(
    "Layer",
    **_each("in_proj out_proj up gate down", _Matrix),
    **_each("mix skip ssm_scale mlp_scale conv_weight conv_bias dt_bias A D norm", _POINTER),
    source=_INT,
)
_Model = _structure(
    "Model",
    layers=ctypes.POINTER(_Layer),
    **_each("embed_proj head_proj head", _Matrix),
    **_each("embedding bias", _POINTER),
    **_each("n_layer D E F H P G N taps M V gelu reset softcap", _INT),
    **_each("cap inverse_temperature rms_eps gated_eps", ctypes.c_float),
)
_Coder = _structure(
    "Coder", **_each("low range", ctypes.c_uint64), words=_POINTER, **_each("size position writing", _INT)
)


class CompiledSteps:
    """Steps whose bits depend neither on threads nor on other lanes. See `steps.Steps` for the methods."""

    variant = COMPILED

    def __init__(self, artifact: Artifact) -> None:
        kernels = _kernels()
        assert kernels is not None
        self.kernels, self.artifact = kernels, artifact
        self._kept: list[Tensor] = []
        """Weights that the kernels read."""
        with stored(artifact.model) as model:
            self._model = self._packed(model)
        self.model = ctypes.byref(self._model)

    def probe(self, lanes: int) -> bytes:
        """See `steps.Steps`. The digest is that of the probabilities, to the bit, whatever `lanes` is."""
        buffer, digest, start = self.buffer(), hashlib.sha256(), self.kernels.probabilities_at(self.model)
        for tokens_W in probe_tokens(self.artifact, LANES):
            self.step(buffer, tokens_W.astype(np.int32))
            digest.update(buffer[start : start + self._model.V * LANES].numpy().tobytes())
        return digest.digest()[:8]

    def start(self, lanes: int, content: bytes | int) -> _CompiledCoder:
        """See `steps.Steps`."""
        return _CompiledCoder(self, content)

    def buffer(self) -> Tensor:
        """Return the state of a batch of lanes before its first token, and room for what a step computes."""
        return torch.zeros(self.kernels.lanes_size(self.model))

    def step(self, buffer: Tensor, tokens_W: NDArray[np.int32]) -> None:
        """Feed a token to each of 16 lanes."""
        self.kernels.step(self.model, pointer(buffer), tokens_W.ctypes.data)

    def _packed(self, model: LanguageModel) -> ctypes.Structure:
        config, head, tokenizer = model.config, model.head, self.artifact.tokenizer
        blocks = [block for block in model.blocks if isinstance(block, Block)]
        embedding_VE = model.token_embed.effective_weight()
        head_VF = head.matrix(embedding_VE)[: tokenizer.vocab_size]
        projections = {
            name: self._matrix(linear.weight.effective_weight())
            for name, owner, attribute in (("embed_proj", model, "embed_proj"), ("head_proj", head, "embed_proj_rev"))
            if isinstance(linear := getattr(owner, attribute, None), QuantLinear)
        }
        return _Model(
            layers=(_Layer * len(blocks))(*[self._layer(model, index) for index in range(len(blocks))]),
            **projections,
            head=self._matrix(head_VF),
            embedding=self._vector(embedding_VE),
            bias=self._vector(head.vocab_bias),
            n_layer=len(blocks), D=config.d_model, E=config.embed_dim, F=head_VF.shape[1],
            H=config.heads, P=config.headdim, G=config.ngroups, N=config.d_state, taps=config.d_conv,
            M=config.d_intermediate, V=len(head_VF),
            gelu=head.tie == 3,
            reset=tokenizer.bos_id if tokenizer.separator and self.artifact.run.data.reset else -1,
            softcap=_CAPS.index(config.softcap), cap=config.cap,
            inverse_temperature=1 / self.artifact.temperature, rms_eps=RMS_EPS, gated_eps=GATED_NORM_EPS,
        )  # fmt: skip

    def _layer(self, model: LanguageModel, index: int) -> ctypes.Structure:
        block = model.blocks[index]
        assert isinstance(block, Block)
        assert isinstance(block.mixer, Mamba2)
        mixer, mlp, skips = block.mixer, block.mlp, model.skips
        linears = {"in_proj": mixer.in_proj, "out_proj": mixer.out_proj}
        if mlp is not None:
            linears |= {"up": mlp.up, "down": mlp.down} | ({"gate": mlp.gate} if mlp.gated else {})
        row = skips.row.get(index)
        return _Layer(
            **{name: self._matrix(linear.weight.effective_weight()) for name, linear in linears.items()},
            mix=self._vector(block.mix),
            skip=None if row is None else self._vector(skips.skip_weight.effective_weight()[row]),
            ssm_scale=self._vector(block.ssm_scale),
            mlp_scale=None if block.mlp_scale is None else self._vector(block.mlp_scale),
            conv_weight=self._vector(mixer.conv_weight),
            conv_bias=self._vector(mixer.conv_bias),
            dt_bias=self._vector(mixer.dt_bias),
            # In fp64, so that the rounded value does not depend on the library's exp.
            A=self._vector(-mixer.A_log.effective_weight().double().exp()),
            D=self._vector(mixer.D),
            norm=self._vector(mixer.norm_weight),
            source=skips.source.get(index, -1),
        )

    def _vector(self, value: Tensor | QuantWeight) -> ctypes.c_void_p:
        value = value.effective_weight() if isinstance(value, QuantWeight) else value
        self._kept.append(value.detach().float().clone(memory_format=torch.contiguous_format))
        return pointer(self._kept[-1])

    def _matrix(self, value_RK: Tensor) -> ctypes.Structure:
        rows, columns = value_RK.shape
        tiles = F.pad(value_RK, (0, 0, 0, -rows % _TILE)).unflatten(0, (-1, _TILE)).transpose(1, 2)
        return _Matrix(self._vector(tiles), rows, columns)


class _CompiledCoder:
    """See `steps.BatchCoder`. Lanes that the batch lacks read BOS."""

    def __init__(self, steps: CompiledSteps, content: bytes | int) -> None:
        self._steps, self._buffer, self.nats = steps, steps.buffer(), 0.0
        self._tokens_W = np.full(LANES, steps.artifact.tokenizer.bos_id, np.int32)
        reading = isinstance(content, bytes)
        # A token takes at most one word, and the end another.
        self._words = section_words(content) if isinstance(content, bytes) else np.zeros(content + 1, np.uint32)
        self._coder = _Coder(0, 2**64 - 1, self._words.ctypes.data, len(self._words), 0, not reading)
        self._state = ctypes.byref(self._coder)
        if reading:
            steps.kernels.start_reading(self._state)

    def code(self, inputs_W: NDArray[np.int32], tokens_A: NDArray[np.int32]) -> NDArray[np.int32]:
        """See `steps.BatchCoder`."""
        steps = self._steps
        self._tokens_W[: len(inputs_W)] = inputs_W
        steps.step(self._buffer, self._tokens_W)
        coded_A = np.ascontiguousarray(tokens_A)
        nats = steps.kernels.code(steps.model, pointer(self._buffer), self._state, len(coded_A), coded_A.ctypes.data)
        if nats < 0:
            raise UserError("its coded data are damaged")
        self.nats += nats
        return coded_A

    def finish(self, tokens: int) -> bytes:
        """See `steps.BatchCoder`."""
        self._steps.kernels.finish_writing(self._state)
        return section(self._words[: self._coder.position], tokens)
