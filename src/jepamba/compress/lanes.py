"""The model's predictions for many segments (lanes) of a text in parallel, one token per step.

A decoder must decode token t before it can predict token t + 1, so that a single stream would be slow. The tokens are
therefore divided into lanes of nearly equal length. Each lane starts from a zero state, and lanes are processed in
batches. Encoder and decoder run exactly the same steps: the same batches, one thread per batch, fp32 on the CPU.

Legend: N tokens, W lanes of a batch, D d_model, V vocabulary.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from jepamba.artifact import Artifact

LANE_TOKENS = 2048
"""Usual length of a lane. Each lane costs a few bytes, because it starts without context."""
VECTOR_LANES, MIN_LANE_TOKENS = 16, 512
"""A small file is divided into up to 16 lanes of at least 512 tokens, a larger one into a multiple of 16, for speed."""
MAX_LANES = 1024
"""Maximum of lanes in a file."""
TORCH, COMPILED = 1, 2
"""Variants of the steps (see `steps`), which are the versions of the file format."""
BATCH_LANES = {TORCH: 32, COMPILED: VECTOR_LANES}
"""Maximum of lanes in a batch, by variant."""

LEVELS = 64
"""Quantization levels of log-probability per nat."""
_SCALE = 1 << 24
_DEPTH = math.ceil(LEVELS * math.log(_SCALE))
_WEIGHTS = np.array([max(1, round(_SCALE * math.exp(-k / LEVELS))) for k in range(_DEPTH + 1)], dtype=np.float64)
"""Integers, whose sum is exact in any order."""
_PROBE_STEPS = 4


@dataclass(frozen=True)
class LaneLayout:
    """The division of `tokens` tokens into `lanes` lanes, longer lanes first."""

    tokens: int
    lanes: int
    variant: int = COMPILED

    @property
    def batches(self) -> list[range]:
        """Lanes of each batch."""
        count = -(-self.lanes // BATCH_LANES[self.variant])
        edges = [batch * self.lanes // count for batch in range(count + 1)]
        return [range(start, stop) for start, stop in pairwise(edges)]

    def start(self, lane: int) -> int:
        """Return the position of a lane's first token. For `lane` = `lanes` it is the end of the stream."""
        return lane * (self.tokens // self.lanes) + min(lane, self.tokens % self.lanes)

    def length(self, lane: int) -> int:
        """Return the number of tokens of a lane."""
        return self.start(lane + 1) - self.start(lane)


def lane_count(tokens: int) -> int:
    """Return the default number of lanes of `tokens` tokens, at least one."""
    small = max(1, min(VECTOR_LANES, tokens // MIN_LANE_TOKENS))
    return min(MAX_LANES, max(small, tokens // LANE_TOKENS // VECTOR_LANES * VECTOR_LANES))


class LaneBatch:
    """A batch of `size` lanes. Each `step` advances all of them by one token."""

    def __init__(self, artifact: Artifact, size: int) -> None:
        self._model, self._temperature = artifact.model, artifact.temperature
        self._reset = artifact.tokenizer.bos_id if artifact.tokenizer.separator and artifact.run.data.reset else None
        self._state = self._model.initial_state(size)

    def step(self, ids_W: NDArray[np.int64]) -> Float[Tensor, "W V"]:
        """Feed one token to each lane and return the logits of the next, divided by the temperature."""
        ids_W1 = torch.from_numpy(ids_W).unsqueeze(1)
        reset_W1 = None if self._reset is None else ids_W1 == self._reset
        h_W1D, self._state = self._model(ids_W1, reset_W1, self._state)
        return self._model.logits(h_W1D[:, 0]) / self._temperature


def levels(logits_WV: Float[Tensor, "W V"]) -> Int[Tensor, "W V"]:
    """Quantize the distance of each logit from the maximum of its row, in units of 1/64 nat, up to 24 bits."""
    below = (logits_WV.amax(1, keepdim=True) - logits_WV).mul_(LEVELS).round_()
    # The model of a forged artifact may give NaN, which must still become a level.
    return below.nan_to_num_(_DEPTH).clamp_(0, _DEPTH).long()


def weights(levels_WV: Int[Tensor, "W V"]) -> NDArray[np.float64]:
    """Return integer weights proportional to the probabilities: 2^24 · e^(−level / 64), rounded, at least 1."""
    result: NDArray[np.float64] = _WEIGHTS[levels_WV.numpy()]
    return result


def nats(logits_WV: Float[Tensor, "W V"], targets_W: NDArray[np.int64]) -> float:
    """Return the sum of −ln p of the targets, from unquantized logits."""
    targets_W1 = torch.from_numpy(targets_W).unsqueeze(1)
    return float((logits_WV.logsumexp(1) - logits_WV.gather(1, targets_W1).squeeze(1)).double().sum())


def probe(artifact: Artifact, size: int) -> bytes:
    """Return an 8-byte digest of the levels of a few steps on fixed tokens. It shows whether two machines agree."""
    batch, digest = LaneBatch(artifact, size), hashlib.sha256()
    for ids_W in probe_tokens(artifact, size):
        digest.update(levels(batch.step(ids_W)).numpy().astype("<i2").tobytes())
    return digest.digest()[:8]


def probe_tokens(artifact: Artifact, size: int) -> Iterator[NDArray[np.int64]]:
    """Yield the tokens (W,) of each step of a probe, BOS first."""
    yield np.full(size, artifact.tokenizer.bos_id)
    for step in range(_PROBE_STEPS - 1):
        yield (np.arange(size) * 2654435761 + step * 40503) % artifact.tokenizer.vocab_size
