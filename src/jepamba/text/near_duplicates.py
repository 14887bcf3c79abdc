"""Selects documents to hold out so that the held-out text shares almost no passage with the training text.

A passage is a string of `PASSAGE` bytes within a document. Documents that share passages form groups, and a group is
held out as a whole or not at all. Only groups that share almost nothing with the rest of the text are held out.

Dimensions: D distinct documents, G groups, S passages (one per byte at which a passage starts), sorted.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from jepamba.errors import UserError
from jepamba.text.protocol import Continuation, utf8

PASSAGE = 50
"""Bytes."""
LIMITS = (0.01, 0.1, 0.5)
"""Shares of common passages from which documents form a group. The first at which a group can be held out is used."""
MAX_SAMPLES = 1 << 23
"""Passages in memory. Of a longer text those with the smallest hashes are taken, so copies are sampled alike."""

MAX_REACH = 1 << 20
"""Characters from the share at which the held-out end of a document may start."""

_BLOCK = 1 << 17
_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2**64; 5 modulo 8, so that its order is maximal
_POWERS = np.cumprod(np.full(_BLOCK + PASSAGE, _BASE, dtype=np.uint64))
_INVERSE_POWERS = np.cumprod(np.full(_BLOCK + PASSAGE, pow(_BASE, -1, 1 << 64), dtype=np.uint64))
_BYTE_VALUES = np.random.Generator(np.random.PCG64(0)).integers(1 << 64, size=256, dtype=np.uint64)


_BREAKS = (r"\n[ \t\r]*\n\s*", r"\n", r"\s")
"""Ends of paragraphs, lines and words."""


class NothingHeldOutError(UserError):
    """No document can be held out."""


class OneDocumentError(NothingHeldOutError):
    """There is only one distinct document."""


@dataclass(frozen=True)
class HeldOut:
    """The documents that are held out, by the hash of their text; `text in held_out` tests one."""

    document_hashes: frozenset[int]
    overlap: float
    """Share of the held-out passages that occur in the training text. Beyond `MAX_SAMPLES` passages it is an estimate
    from the sample that also selects the documents, and so a little low."""
    in_order: NDArray[np.bool_] = field(compare=False, repr=False)
    """Whether each document is held out, in the order in which they were read."""

    def __contains__(self, text: str) -> bool:
        return _as_name(_document_digest(utf8(text))) in self.document_hashes


def hold_out(documents: Iterable[str], share: float) -> HeldOut:
    """Select about the fraction `share` of the distinct `documents`, and at least one of them.

    Documents that share more than the first of `LIMITS` of the passages of the smaller one form a group. Groups that
    share at most that limit of their passages with other groups are held out, in the order of size and then of their
    smallest document hash, so that the held-out text repeats itself as little as possible. The next limit is tried only
    if no group qualifies. The result depends only on the text, not on the order of the documents, and copies share a
    side.

    Raises `OneDocumentError` if there is only one distinct document, and `NothingHeldOutError` if no group qualifies at
    any limit.
    """
    hashes, passages_S, document_S, order = _sample(documents)
    if hashes.size < 2:
        raise OneDocumentError("only one document, none can be held out for validation")
    held = min(max(round(share * hashes.size), 1), hashes.size - 1)
    starts = np.flatnonzero(np.diff(passages_S, prepend=~passages_S[:1]))  # of each run of equal passages
    run_S = np.repeat(np.arange(starts.size), np.diff(starts, append=passages_S.size))
    pairs = _pairs(run_S, document_S, hashes.size)
    for limit in LIMITS:
        count, group_D = _groups(*pairs, limit, hashes.size)
        group_S = group_D[document_S]
        # A passage is shared if its occurrences are not all in one group.
        shared = np.minimum.reduceat(group_S, starts) < np.maximum.reduceat(group_S, starts)
        shared_G = np.bincount(group_S, weights=shared[run_S], minlength=count)
        apart_G = shared_G <= limit * np.bincount(group_S, minlength=count)
        if count > 1 and apart_G.any():
            break
    else:
        raise NothingHeldOutError("all documents are near-duplicates, none can be held out for validation")
    held_D = _choose(group_D, apart_G, held)[group_D]
    return HeldOut(frozenset(hashes[held_D].tolist()), _overlap(held_D[document_S], starts, run_S), held_D[order])


def hold_out_end(read: Callable[[], Iterable[str]], share: float) -> tuple[int, HeldOut]:
    """Divide a single document: hold out about the fraction `share` at its end.

    Arguments: `read`: returns the texts whose concatenation is the document, each time anew.

    Returns the character at which the held-out text starts, and that text. It starts after the end of a paragraph, the
    one nearest to the share; if none is within half of the share or `MAX_REACH`, of a line, and then of a word.

    Raises `NothingHeldOutError` if both parts would be equal, or one empty.
    """
    size = sum(map(len, read()))
    goal, reach = round((1 - share) * size), min(size * min(share, 1 - share) / 2, MAX_REACH)
    first, last = max(round(goal - reach), 0), min(round(goal + reach), size - 1)
    window = "".join(text[max(first - at, 0) : max(last - at, 0)] for at, text in _placed(read()))
    places = ([first + match.end() for match in re.compile(pattern).finditer(window)] for pattern in _BREAKS)
    start = min(next(filter(None, places), [goal]), key=lambda place: abs(place - goal))
    hashes, passages_S, document_S, order = _sample(divided(read(), start))
    if not 0 < start < size or hashes.size < 2:
        raise NothingHeldOutError("only one document, whose end cannot be held out for validation")
    held_D = np.arange(2) == order[1]
    starts = np.flatnonzero(np.diff(passages_S, prepend=~passages_S[:1]))
    run_S = np.repeat(np.arange(starts.size), np.diff(starts, append=passages_S.size))
    overlap = _overlap(held_D[document_S], starts, run_S)
    return start, HeldOut(frozenset(hashes[held_D].tolist()), overlap, held_D[order])


def divided(texts: Iterable[str], start: int) -> Iterator[str]:
    """Divide a document, the concatenation of `texts`, in two: the second starts with the character `start`."""
    for at, text in _placed(texts):
        cut = start - at
        if not 0 < cut < len(text):
            yield str(text) if cut == 0 or at == 0 else Continuation(text)
            continue
        yield Continuation(text[:cut]) if at else text[:cut]
        yield text[cut:]


def _placed(texts: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Yield each of `texts` with the number of characters before it."""
    at = 0
    for text in texts:
        yield at, text
        at += len(text)


def _overlap(held_S: NDArray[np.bool_], starts: NDArray[np.int64], run_S: NDArray[np.int64]) -> float:
    """Return the share of the held-out passages that occur in the training text. `starts`: of equal passages."""
    in_training = ~np.logical_and.reduceat(held_S, starts)
    return float(in_training[run_S][held_S].mean()) if held_S.any() else 0.0


def overlap_in_words(overlap: float) -> str:
    """Format `HeldOut.overlap` for a message."""
    return f"{overlap:.2%} of their {PASSAGE}-byte strings are in the training text"


def _choose(group_D: NDArray[np.int32], apart_G: NDArray[np.bool_], held: int) -> NDArray[np.bool_]:
    """Choose the smallest groups, of together at most `held` documents but at least one group. Returns (G,)."""
    # Documents are sorted by hash, so the first document of a group has its smallest hash.
    groups, first_G, size_G = np.unique(group_D, return_index=True, return_counts=True)
    order = np.lexsort((first_G, size_G))
    order = order[apart_G[order]]
    fitting = max(int(np.count_nonzero(np.cumsum(size_G[order]) <= held)), 1)
    return np.isin(groups, order[:fitting])


def _pairs(
    run_S: NDArray[np.int64], document_S: NDArray[np.int64], documents: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return pairs of documents, and the passages that they share as a fraction of the passages of the smaller one.

    Of the documents with a passage in common only neighbours in the order of hashes are counted, which keeps the number
    of pairs linear. `run_S` numbers the distinct passages.
    """
    # A passage counts once per document.
    new = np.append(True, (run_S[1:] != run_S[:-1]) | (document_S[1:] != document_S[:-1]))[: run_S.size]
    run, document = run_S[new], document_S[new]
    size_D = np.bincount(document, minlength=documents)
    same = run[1:] == run[:-1]
    pairs, shared = np.unique(document[:-1][same] * documents + document[1:][same], return_counts=True)
    first, second = np.divmod(pairs, documents)
    return first, second, shared / np.minimum(size_D[first], size_D[second])


def _groups(
    first: NDArray[np.int64], second: NDArray[np.int64], shared: NDArray[np.float64], limit: float, documents: int
) -> tuple[int, NDArray[np.int32]]:
    """Group documents over the pairs that share more than `limit`. Returns the number of groups and each one's (D,)."""
    from scipy.sparse import coo_array, csgraph  # imported here because it takes a fifth of a second

    linked = shared > limit
    links = coo_array((shared[linked], (first[linked], second[linked])), shape=(documents, documents))
    count, group_D = csgraph.connected_components(links, directed=False)
    return int(count), group_D


def _sample(
    documents: Iterable[str],
) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the sorted hashes of the distinct documents, of their passages, and the document of each passage.

    The last array has the distinct document of each of `documents`, in their order.
    """
    names: list[int] = []
    passages, owners, count, top = [np.empty(0, np.uint64)], [np.empty(0, np.int64)], 0, (1 << 64) - 1
    for pieces, piece_owners in _batches(documents, names):
        hashes, owner = _passage_hashes(pieces, piece_owners, top)
        passages.append(hashes)
        owners.append(owner)
        count += hashes.size
        while count > MAX_SAMPLES:
            top >>= 1
            every = np.concatenate(passages)
            kept = every <= top
            passages, owners = [every[kept]], [np.concatenate(owners)[kept]]
            count = passages[0].size
    distinct, index = np.unique(np.array(names, dtype=np.uint64), return_inverse=True)
    passages_S, document_S = np.concatenate(passages), index[np.concatenate(owners)]
    order = np.lexsort((document_S, passages_S))
    return distinct, passages_S[order], document_S[order], index


def _batches(documents: Iterable[str], names: list[int]) -> Iterator[tuple[list[bytes], list[int]]]:
    """Cut the documents into pieces that overlap by one byte less than a passage, and batch these to about `_BLOCK`.

    Yields the pieces and the index of the document of each; appends the hash of every document to `names`.
    """
    pieces: list[bytes] = []
    owners: list[int] = []
    size = 0
    digest, tail = _document_digest(), b""
    begun = False
    for text in documents:
        if not isinstance(text, Continuation):
            if begun:
                names.append(_as_name(digest))
            digest, tail = _document_digest(), b""
        data = utf8(text)
        digest.update(data)
        data = tail + data
        tail = data[1 - PASSAGE :]
        for start in range(0, len(data) - PASSAGE + 1, _BLOCK // 2):
            piece = data[start : start + _BLOCK // 2 + PASSAGE - 1]
            if size + len(piece) > _BLOCK:
                yield pieces, owners
                pieces, owners, size = [], [], 0
            pieces.append(piece)
            owners.append(len(names))
            size += len(piece)
        begun = True
    if begun:
        names.append(_as_name(digest))
    yield pieces, owners


def _passage_hashes(
    pieces: list[bytes], piece_owners: list[int], top: int
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Return the hashes up to `top` of all passages of `pieces`, and the owner of each.

    Polynomial hashes modulo 2**64 of all windows, from the prefix sums of byte value times power of the base.
    """
    data = np.frombuffer(b"".join(pieces), dtype=np.uint8)
    if data.size < PASSAGE:
        return np.empty(0, np.uint64), np.empty(0, np.int64)
    prefix = np.cumsum(_BYTE_VALUES[data] * _POWERS[: data.size])
    hashes = prefix[PASSAGE - 1 :].copy()
    hashes[1:] -= prefix[:-PASSAGE]
    hashes *= _INVERSE_POWERS[: hashes.size]
    # The low bits of a product depend only on low bits: mix, so that the sample is uniform.
    for _ in range(2):
        hashes ^= hashes >> np.uint64(32)
        hashes *= np.uint64(0xD6E8FEB86659FD93)
    hashes ^= hashes >> np.uint64(32)
    ends = np.cumsum([len(piece) for piece in pieces])
    starts = np.flatnonzero(hashes <= np.uint64(top))
    piece = np.searchsorted(ends, starts, side="right")
    inside = starts + PASSAGE <= ends[piece]
    return hashes[starts[inside]], np.array(piece_owners)[piece[inside]]


def _document_digest(data: bytes = b"") -> hashlib.blake2b:
    return hashlib.blake2b(data, digest_size=8, key=b"jepamba holdout")


def _as_name(digest: hashlib.blake2b) -> int:
    return int.from_bytes(digest.digest(), "big")
