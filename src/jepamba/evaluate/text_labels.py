"""What a text has that a latent might know, found from its tokens alone: sentences, and groups of similar documents.

Both are found in the decoded text, so models with other tokenizers get the same sentences and groups.

Legend: N tokens, G documents.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from jepamba.text import Tokenizer

_END = re.compile(rb"[.!?][\"')\]]*\s+(?=[\"'(\[]*[A-Z0-9])|\n\s*\n")
"""The end of a sentence: its last mark and the blanks before a capital or a digit; or an empty line."""
_WORD = re.compile(rb"[a-z]+")
_WORD_BUCKETS = 4096
_COMPONENTS = 16


def document_spans(documents_N: NDArray[np.integer]) -> list[tuple[int, int]]:
    """Return (start, stop) of each run of equal numbers in `documents_N`."""
    cuts = np.flatnonzero(np.diff(documents_N)) + 1
    return list(zip([0, *cuts.tolist()], [*cuts.tolist(), len(documents_N)], strict=True))


def document_texts(
    tokens_N: NDArray[np.integer], documents_N: NDArray[np.integer], tokenizer: Tokenizer
) -> list[bytes]:
    """Decode each document."""
    return [
        tokenizer.decode(tokens_N[start:stop], previous=tokenizer.bos_id) for start, stop in document_spans(documents_N)
    ]


def sentence_numbers(
    tokens_N: NDArray[np.integer], documents_N: NDArray[np.integer], tokenizer: Tokenizer
) -> NDArray[np.int64]:
    """Number the sentences of the text from 0, in order. A document starts a sentence.

    A token belongs to the sentence of its last byte. A token without text belongs to the sentence before it, or to the
    first one of its document.

    Returns: the number of each token's sentence.
    """
    numbers_N = np.empty(len(tokens_N), dtype=np.int64)
    first = 0
    texts = document_texts(tokens_N, documents_N, tokenizer)
    for (start, stop), text in zip(document_spans(documents_N), texts, strict=True):
        ids = tokens_N[start:stop].astype(np.int64)
        previous = np.concatenate([[tokenizer.bos_id], ids[:-1]])
        last_bytes = np.cumsum(tokenizer.target_bytes(previous, ids)) - 1
        starts = [match.end() for match in _END.finditer(text)]
        numbers_N[start:stop] = first + np.searchsorted(starts, np.maximum(last_bytes, 0), side="right")
        first = int(numbers_N[stop - 1]) + 1
    return numbers_N


def document_groups(texts: Sequence[bytes], groups: int, seed: int = 0) -> NDArray[np.int64]:
    """Cluster documents by their words into at most `groups` groups: sources, or subjects, of a mixed text.

    The features are the principal components of the logarithms of word counts, weighted by rarity and scaled to unit
    length. The clusters are those of k-means. Without words all documents form one group.

    Returns: the group of each document (G,), numbered from 0 without gaps.
    """
    from scipy.cluster.vq import kmeans2

    counts = np.zeros((len(texts), _WORD_BUCKETS))
    for row, text in zip(counts, texts, strict=True):
        for word in _WORD.findall(text.lower()):
            row[zlib.crc32(word) % _WORD_BUCKETS] += 1
    rarity = np.log((1 + len(texts)) / (1 + (counts > 0).sum(0)))
    features = np.log1p(counts) * rarity
    features /= np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    features -= features.mean(0)
    left, scales, _ = np.linalg.svd(features, full_matrices=False)
    components = (left * scales)[:, :_COMPONENTS]
    if scales[0] < 1e-9:
        return np.zeros(len(texts), dtype=np.int64)
    # Fewer distinct texts than groups leave groups without documents.
    _, labels = kmeans2(components, groups, minit="++", seed=np.random.default_rng(seed), iter=50, missing="warn")
    return np.unique(labels, return_inverse=True)[1].astype(np.int64)
