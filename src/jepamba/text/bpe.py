"""Training a tokenizer of our own: SentencePiece BPE with byte fallback, which gives every text back to the byte."""

from __future__ import annotations

import hashlib
import heapq
import io
from collections import Counter
from collections.abc import Iterable, Iterator

import sentencepiece

from jepamba.errors import UserError
from jepamba.text.pieces import SPACE, SentencePieceTokenizer
from jepamba.text.protocol import utf8

SAMPLE_BYTES = 20_000_000
"""Text that the pieces are counted on; more hardly changes them."""
CHUNK_CHARS = 4096
"""The sample is drawn in chunks of at most so many characters."""
COVERAGE = 0.9999
"""Characters that make up this share of the text get pieces of their own; the rest are spelled in bytes."""
FIXED_PIECES = 260
"""<pad>, <s>, </s>, <unk> and the 256 bytes."""


def train_bpe(documents: Iterable[str], vocab: int) -> SentencePieceTokenizer:
    """A BPE tokenizer of at most `vocab` pieces, trained on a sample of `documents`: same documents, same tokenizer.

    Ids: pad 0, BOS 1, EOS 2, unknown 3, then 256 bytes. Text is not normalised, digits are split, newlines and runs of
    spaces may be pieces of their own. Text too small for `vocab` pieces gives fewer. The sample is bounded
    (`SAMPLE_BYTES`) and does not depend on the order of the documents.

    Raises `UserError` for documents without text, or fewer than 264 or more than 65,536 pieces.
    """
    if not FIXED_PIECES + 4 <= vocab <= 65536:
        raise UserError(f"a tokenizer of {vocab} pieces: it has {FIXED_PIECES + 4} (bytes and controls) to 65,536")
    chunks = _sample(_chunks(documents), SAMPLE_BYTES)
    if not chunks:
        raise UserError("no text to train a tokenizer on")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            # The space always has a piece: without one it would be spelled as the bytes of "▁".
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
    """The documents in chunks of at most `CHUNK_CHARS`, cut before a space or newline where there is one."""
    for document in documents:
        start = 0
        while start < len(document):
            stop = start + CHUNK_CHARS
            if stop < len(document):
                blank = max(document.rfind(" ", start + 1, stop), document.rfind("\n", start + 1, stop))
                stop = blank if blank > start else stop
            yield document[start:stop]
            start = stop


def _sample(chunks: Iterable[str], limit: int) -> list[str]:
    """About `limit` bytes of `chunks`, those whose hashes are smallest, in the order of their hashes."""
    heap: list[tuple[int, str, int]] = []
    total = 0
    for chunk in chunks:
        raw = utf8(chunk)
        rank = int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "big")
        # heapq keeps the smallest on top; the top must be the largest hash, the first to go.
        heapq.heappush(heap, (-rank, chunk, len(raw)))
        total += len(raw)
        while total - heap[0][2] >= limit:
            total -= heapq.heappop(heap)[2]
    return [chunk for _, chunk, _ in sorted(heap, reverse=True)]


def _common_characters(chunks: list[str], room: int) -> Iterator[str]:
    """The chunks without their rare characters, cut apart there; at most `room` distinct characters are left.

    The library's own coverage setting refuses a text with more characters than the vocabulary has room for.
    """
    counts: Counter[str] = Counter()
    for chunk in chunks:
        counts.update(chunk)
    counts.pop("\0", None)
    counts.pop(SPACE, None)
    counts[" "] += 1
    wanted = COVERAGE * counts.total()
    kept, covered = {" "}, counts[" "]
    for character, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if covered >= wanted or len(kept) >= room:
            break
        if character != " ":
            kept.add(character)
            covered += count
    rare = dict.fromkeys((ord(c) for c in counts.keys() - kept), "\0") | {ord(SPACE): "\0"}
    for chunk in chunks:
        yield from (part for part in chunk.translate(rare).split("\0") if part)
