"""Trains a lossless tokenizer: SentencePiece BPE with byte fallback."""

from __future__ import annotations

import hashlib
import heapq
import io
from collections import Counter
from collections.abc import Iterable, Iterator

import sentencepiece

from jepamba.errors import UserError
from jepamba.text.pieces import SPACE, SentencePieceTokenizer
from jepamba.text.protocol import Continuation, utf8

SAMPLE_BYTES = 20_000_000
"""Size of the training sample. A larger sample hardly changes the pieces."""
CHUNK_CHARS = 4096
"""Maximum characters of a sampled chunk."""
COVERAGE = 0.9999
"""Fraction of the text whose characters get pieces of their own. Rarer characters are encoded as bytes."""
RESERVED = f"\0{SPACE}\u2585"
"""Characters with a meaning of their own in SentencePiece, which ignores training text that contains the last ("▅")."""
FIXED_PIECES = 260
"""<pad>, <s>, </s>, <unk> and the 256 bytes."""


def train_bpe(documents: Iterable[str], vocab: int) -> SentencePieceTokenizer:
    """Train a BPE tokenizer of at most `vocab` pieces. Training is deterministic.

    Ids: pad 0, BOS 1, EOS 2, unknown 3, then the 256 bytes. The tokenizer does not normalize text. It splits digits.
    Newlines and runs of spaces can be pieces. A small text gives fewer than `vocab` pieces. The training sample has at
    most about `SAMPLE_BYTES` bytes and does not depend on the order of the documents.

    Raises `UserError` if the documents have no text, or if `vocab` is outside 264 to 65,536.
    """
    if not FIXED_PIECES + 4 <= vocab <= 65536:
        raise UserError(
            f"a tokenizer cannot have {vocab} pieces: choose {FIXED_PIECES + 4} (bytes and control pieces) to 65,536"
        )
    chunks = _sample(_chunks(documents), SAMPLE_BYTES)
    if not chunks:
        raise UserError("no text to train a tokenizer on")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            # Without a piece of its own, the space would be encoded as the bytes of "▁".
            sentence_iterator=iter([" ", *_common_characters(chunks, (vocab - FIXED_PIECES) // 2)]),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab,
            hard_vocab_limit=False,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            character_coverage=1.0,
            max_sentence_length=CHUNK_CHARS * 4,
            shuffle_input_sentence=False,
            num_threads=1,
            pad_id=0,
            bos_id=1,
            eos_id=2,
            unk_id=3,
            minloglevel=3,
        )
    except (RuntimeError, OSError) as error:
        raise UserError(f"training a tokenizer of {vocab} pieces failed: {' '.join(str(error).split())}") from None
    return SentencePieceTokenizer(model.getvalue())


def _chunks(documents: Iterable[str]) -> Iterator[str]:
    """Yield chunks of at most `CHUNK_CHARS` characters, cut before a space or newline if possible."""
    rest = ""
    for text in documents:
        if rest and not isinstance(text, Continuation):
            yield rest
            rest = ""
        document, start = rest + text, 0
        while start + CHUNK_CHARS < len(document):
            stop = start + CHUNK_CHARS
            blank = max(document.rfind(" ", start + 1, stop), document.rfind("\n", start + 1, stop))
            stop = blank if blank > start else stop
            yield document[start:stop]
            start = stop
        rest = document[start:]
    if rest:
        yield rest


def _sample(chunks: Iterable[str], limit: int) -> list[str]:
    """Return about `limit` bytes of `chunks`: those with the smallest hashes, sorted by hash."""
    heap: list[tuple[int, str, int]] = []
    total = 0
    for chunk in chunks:
        raw = utf8(chunk)
        rank = int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "big")
        # heapq pops the smallest item. The negated hash makes it pop the largest hash.
        heapq.heappush(heap, (-rank, chunk, len(raw)))
        total += len(raw)
        while total - heap[0][2] >= limit:
            total -= heapq.heappop(heap)[2]
    return [chunk for _, chunk, _ in sorted(heap, reverse=True)]


def _common_characters(chunks: list[str], max_characters: int) -> Iterator[str]:
    """Yield the pieces of `chunks` between rare characters, with at most `max_characters` distinct characters.

    SentencePiece's own coverage setting fails if the text has more distinct characters than the vocabulary has pieces.
    """
    counts: Counter[str] = Counter()
    for chunk in chunks:
        counts.update(chunk)
    for character in RESERVED:
        counts.pop(character, None)
    counts[" "] += 1
    target = COVERAGE * counts.total()
    kept, covered = {" "}, counts[" "]
    for character, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if covered >= target or len(kept) >= max_characters:
            break
        if character != " ":
            kept.add(character)
            covered += count
    rare = dict.fromkeys(map(ord, [*(counts.keys() - kept), *RESERVED]), "\0")
    for chunk in chunks:
        yield from (part for part in chunk.translate(rare).split("\0") if part)
