"""The two variants of the model's steps: PyTorch's, and the compiled ones of `compiled`. Each reads only its own files.

Legend: W lanes of a batch, A lanes of it that have not ended.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from jepamba.artifact import Artifact
from jepamba.compress.compiled import CompiledSteps, is_supported
from jepamba.compress.lanes import TORCH, LaneBatch, levels, nats, probe, weights
from jepamba.compress.range_coder import RangeDecoder, RangeEncoder
from jepamba.errors import UserError


@runtime_checkable
class BatchCoder(Protocol):
    """Encodes or decodes the tokens of a batch of lanes, step by step."""

    nats: float
    """Sum of the model's −ln p over the tokens."""

    def code(self, inputs_W: NDArray[np.int32], tokens_A: NDArray[np.int32]) -> NDArray[np.int32]:
        """Feed a token to each lane, then encode `tokens_A` or decode as many. Returns the coded tokens (A,)."""
        ...

    def finish(self, tokens: int) -> bytes:
        """Return the section that holds the `tokens` tokens encoded so far."""
        ...


@runtime_checkable
class Steps(Protocol):
    """A variant of the steps, for the model of an artifact."""

    variant: int
    artifact: Artifact

    def probe(self, lanes: int) -> bytes:
        """Return 8 bytes that show whether two machines compute the same; `lanes` is the size of the largest batch."""
        ...

    def start(self, lanes: int, content: bytes | int) -> BatchCoder:
        """Start a batch: decode the section `content`, or encode `content` tokens."""
        ...


def fastest_steps(artifact: Artifact) -> Steps:
    """Return the compiled steps if they support this model and machine, else PyTorch's."""
    return CompiledSteps(artifact) if is_supported(artifact.model) else TorchSteps(artifact)


def steps_of_file(variant: int, artifact: Artifact) -> Steps:
    """Return the steps that wrote a file. Raises `UserError` if this machine does not have them."""
    if variant == TORCH:
        return TorchSteps(artifact)
    if not is_supported(artifact.model):
        raise UserError("it was compressed with compiled steps, which need a C++ compiler (g++ or clang++)")
    return CompiledSteps(artifact)


class TorchSteps:
    """PyTorch's operators, in batches of one shape on one thread each. See `Steps` for the methods."""

    variant = TORCH

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact

    def probe(self, lanes: int) -> bytes:
        """See `Steps`."""
        return probe(self.artifact, lanes)

    def start(self, lanes: int, content: bytes | int) -> BatchCoder:
        """See `Steps`."""
        coder = RangeDecoder(content) if isinstance(content, bytes) else RangeEncoder()
        return _TorchCoder(LaneBatch(self.artifact, lanes), coder, self.artifact.tokenizer.vocab_size)


class _TorchCoder:
    """See `BatchCoder`."""

    def __init__(self, batch: LaneBatch, coder: RangeEncoder | RangeDecoder, limit: int) -> None:
        self._batch, self._coder, self._limit, self.nats = batch, coder, limit, 0.0

    def code(self, inputs_W: NDArray[np.int32], tokens_A: NDArray[np.int32]) -> NDArray[np.int32]:
        """See `BatchCoder`."""
        logits_AV = self._batch.step(inputs_W.astype(np.int64))[: len(tokens_A)]
        coded_A = self._coder.rows(weights(levels(logits_AV)), tokens_A)
        if int(coded_A.max()) >= self._limit:
            raise UserError("its coded data are damaged")
        if self._coder.writing:
            self.nats += nats(logits_AV, coded_A.astype(np.int64))
        return coded_A

    def finish(self, tokens: int) -> bytes:
        """See `BatchCoder`."""
        assert isinstance(self._coder, RangeEncoder)
        return self._coder.finish(tokens)
