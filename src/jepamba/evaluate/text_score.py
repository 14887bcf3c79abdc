"""The score of a text by token and by byte.

Legend: N targets, M bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from numpy.typing import NDArray
from torch import Tensor

from jepamba.data.tokens import Tokens
from jepamba.evaluate.score import Score


@dataclass(frozen=True)
class TextScore(Score):
    """The score of one text, with the bits of each token and of each byte. N targets: every token but the first."""

    tokens_N: NDArray[np.uint16]
    """Token ids of the targets."""
    token_bytes: list[bytes]
    """The text of each target; empty for control tokens."""
    token_bits: Float64[np.ndarray, " N"]
    """−log2 p of each target. The sum divided by `bytes` is `bpb`."""

    @property
    def byte_bits(self) -> Float64[np.ndarray, " M"]:
        """The bits of each byte of the decoded text, `b"".join(token_bytes)`, with the sum of `token_bits`.

        A token's bits are divided equally over its bytes. A token without bytes adds its bits to the next token that
        has bytes, or to the last.
        """
        count_N = np.array([len(text) for text in self.token_bytes])
        with_text = count_N > 0
        owner_N = np.minimum(np.cumsum(with_text) - with_text, with_text.sum() - 1)
        bits = np.bincount(owner_N, weights=self.token_bits)
        return np.repeat(bits / count_N[with_text], count_N[with_text])


def text_score(score: Score, tokens: Tokens, nats_N: Float64[Tensor, " N"]) -> TextScore:
    """Return the `score` of the first N targets of `tokens`, with −ln p of each."""
    ids = tokens.read(0, len(nats_N) + 1)
    count_N = tokens.tokenizer.target_bytes(ids[:-1], ids[1:])
    decoded, ends = tokens.tokenizer.decode(ids[1:], previous=int(ids[0])), np.cumsum(count_N).tolist()
    pieces = [decoded[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    return TextScore(**vars(score), tokens_N=ids[1:], token_bytes=pieces, token_bits=nats_N.numpy() / math.log(2))
