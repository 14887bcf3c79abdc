"""The model as a predictor of many stretches of a text at once, one token a step.

A reader has to decode token t before it can predict token t + 1, so that one stream alone would be read at the speed of
single steps. The tokens are therefore cut into lanes of equal length, each read from an empty state, and lanes are read
in batches. Writer and reader run the very same steps: same batch, one thread a batch, fp32 on the CPU.

Legend: N tokens, W lanes of a batch, T steps, V vocabulary.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from jepamba.artifact import Artifact

TOKENS = 4096
"""Tokens of a lane, about; a lane costs a few bytes, because it starts from nothing."""
FEW, SHORT = 16, 512
"""So many lanes may be as short as this: a small file is not to take as long as a large one."""
MOST, WIDTH = 1024, 32
"""Lanes of a file, and of a batch."""

LEVELS = 64
"""Steps of probability: levels in a factor of e."""
_SCALE = 1 << 24
_DEPTH = math.ceil(LEVELS * math.log(_SCALE))
_WEIGHTS = np.array([max(1, round(_SCALE * math.exp(-k / LEVELS))) for k in range(_DEPTH + 1)], dtype=np.float64)
"""Whole numbers, so that a sum of them is exact in any order."""
_PROBE_STEPS = 4


@dataclass(frozen=True)
class LaneLayout:
    """How `tokens` tokens lie in `lanes` lanes, the longer ones first."""

    tokens: int
    lanes: int

    @property
    def batches(self) -> list[range]:
        """The lanes of each batch."""
        count = -(-self.lanes // WIDTH)
        edges = [batch * self.lanes // count for batch in range(count + 1)]
        return [range(first, after) for first, after in pairwise(edges)]

    def start(self, lane: int) -> int:
        """Where a lane starts in the stream; lane `lanes` starts at its end."""
        return lane * (self.tokens // self.lanes) + min(lane, self.tokens % self.lanes)

    def length(self, lane: int) -> int:
        """Tokens of a lane."""
        return self.start(lane + 1) - self.start(lane)


def lane_layout(tokens: int) -> LaneLayout:
    """The usual cut of so many tokens, at least one."""
    return LaneLayout(tokens, min(MOST, max(1, min(FEW, tokens // SHORT), tokens // TOKENS)))


class LaneBatch:
    """`width` lanes at their start; every `step` takes one token of each."""

    def __init__(self, artifact: Artifact, width: int) -> None:
        self._model, self._temperature = artifact.model, artifact.temperature
        self._reset = artifact.tokenizer.bos_id if artifact.tokenizer.separator and artifact.run.data.reset else None
        self._state = self._model.initial_state(width)
        self.first_W = np.full(width, artifact.tokenizer.bos_id, dtype=np.int64)
        """What every lane reads before its first token."""

    def step(self, ids_W: NDArray[np.int64]) -> Float[Tensor, "W V"]:
        """Logits of the next token of each lane, over the temperature, after `ids_W`."""
        ids_W1 = torch.from_numpy(ids_W).unsqueeze(1)
        reset_W1 = None if self._reset is None else ids_W1 == self._reset
        h_W1D, self._state = self._model(ids_W1, reset_W1, self._state)
        return self._model.logits(h_W1D[:, 0]) / self._temperature


def levels(logits_WV: Float[Tensor, "W V"]) -> Int[Tensor, "W V"]:
    """How far each logit lies below the row's largest, in steps of 1/64, at most 24 bits below."""
    below = (logits_WV.amax(1, keepdim=True) - logits_WV).mul_(LEVELS).round_()
    # A model of a forged artifact may overflow; a value that is no number must still be a level.
    return below.nan_to_num_(_DEPTH).clamp_(0, _DEPTH).long()


def weights(levels_WV: Int[Tensor, "W V"]) -> NDArray[np.float64]:
    """Whole numbers in proportion to the probabilities: 2^24 · e^(−level / 64), rounded, at least 1."""
    found: NDArray[np.float64] = _WEIGHTS[levels_WV.numpy()]
    return found


def nats(logits_WV: Float[Tensor, "W V"], targets_W: NDArray[np.int64]) -> float:
    """Sum of −ln p of the targets, before any rounding: what the model itself says they cost."""
    targets_W1 = torch.from_numpy(targets_W).unsqueeze(1)
    return float((logits_WV.logsumexp(1) - logits_WV.gather(1, targets_W1).squeeze(1)).double().sum())


def probe(artifact: Artifact, width: int) -> bytes:
    """8 bytes that depend on every level of a few steps over fixed tokens, and so on how this machine computes."""
    batch, digest = LaneBatch(artifact, width), hashlib.sha256()
    ids_W = batch.first_W
    for step in range(_PROBE_STEPS):
        digest.update(levels(batch.step(ids_W)).numpy().astype("<i2").tobytes())
        ids_W = (np.arange(width) * 2654435761 + step * 40503) % artifact.tokenizer.vocab_size
    return digest.digest()[:8]
