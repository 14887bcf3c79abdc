"""The SentencePiece tokenizer, with the exact byte count of every piece.

In the name of a piece, "▁" (U+2581) means a space and counts one byte. A leading "▁" counts 0 bytes directly after a
control token, because the model adds it at the start of a document. `target_bytes` counts with a table built from the
names of the pieces; `decode` calls SentencePiece. The two are independent, so a comparison of them is a valid check.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice

import numpy as np
import sentencepiece
from numpy.typing import NDArray

from jepamba.errors import UserError
from jepamba.text.protocol import PIECE_CHARS, Ids, Kind, checked, sliced, utf8

SPACE = "▁"
_SPACE_BYTES = SPACE.encode()
_CUT = re.compile(r"(?<=\w) (?=\w)")
"""A space between two words of any script."""
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_NO_TEXT = "\N{REPLACEMENT CHARACTER}"
_THREADS = min(os.cpu_count() or 1, 8)


class SentencePieceTokenizer:
    """A SentencePiece model (BPE or unigram), with or without byte fallback.

    `encode` returns SentencePiece's ids with two exceptions, which make it lossless. If a document starts with a space
    and the model adds no "▁", `encode` adds one, because the first "▁" counts 0 bytes. SentencePiece would turn the
    character "▁" into a space. `encode` turns it into three byte pieces, if the model has them and preserves spaces.

    Arguments: `blob`: the bytes of a `.model` file. Raises `UserError` if the model is invalid, has more than 65,536
    pieces, has no BOS, treats whitespace as a suffix, or decodes a piece to a text other than its name, as a model with
    denormalization rules may do.
    """

    kind: Kind = "sentencepiece"
    separator = True
    cut_chars = 1 << 16
    """Approximate characters of a part. Longer texts are split, because time and memory grow faster than the length."""

    def __init__(self, blob: bytes) -> None:
        self._processor = _load(blob)
        self._blob = bytes(blob)
        self.vocab_size: int = self._processor.get_piece_size()
        self.bos_id: int = self._processor.bos_id()
        self.fingerprint = hashlib.sha256(b"sentencepiece" + self._blob).hexdigest()
        _require(self.vocab_size <= 65536, f"has {self.vocab_size} pieces; 16-bit tokens allow at most 65,536")
        _require(self.bos_id >= 0, "has no BOS piece (<s>), which starts each document; train it with bos_id = 1")
        try:
            self._read_pieces()
            self._detect_space_handling()
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"SentencePiece model is damaged, its pieces do not decode to text: {reason}") from None

    def encode(self, text: str) -> NDArray[np.uint16]:
        """Return the ids of `text` without BOS. Raises `UserError` for text that has no UTF-8 form."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.uint16]]:
        """Encode each text, on several cores."""
        for text in texts:
            utf8(text)
        parts = [list(self._parts(text)) for text in texts]
        encoded = self._encode_parts([part for of_text in parts for part in of_text])
        return [self._with_first_space(np.concatenate(list(islice(encoded, len(of_text))))) for of_text in parts]

    def encode_pieces(self, texts: Iterable[str]) -> Iterator[tuple[str, NDArray[np.uint16]]]:
        """Yield the pieces of a long text, each with its ids. A piece ends where `encode` may cut, too."""
        begun = False
        parts = list[tuple[str, str]]()
        size = 0
        for join, part in chain(self._long_parts(texts), [("end", "")]):
            if parts and (join == "end" or size >= PIECE_CHARS):
                piece = "".join([SPACE + part if join == SPACE else part for join, part in parts])
                utf8(piece)
                ids = np.concatenate(list(self._encode_parts(parts)))
                yield piece, ids if begun else self._with_first_space(ids)
                begun, parts, size = begun or ids.size > 0, [], 0
            parts.append((join, part))
            size += len(part)

    def _encode_parts(self, parts: Sequence[tuple[str, str]]) -> Iterator[NDArray[np.uint16]]:
        """Yield the ids of each of `parts`, pairs of join and text."""
        # A part after a cut is encoded with a guard word "x" in front, whose ids are dropped.
        texts = ["x" + part if join == "cut" else part for join, part in parts]
        for (join, _), ids in zip(parts, self._processor.encode(texts, num_threads=_THREADS), strict=True):
            own = np.asarray(ids[self._guard_length :] if join == "cut" else ids, dtype=np.uint16)
            yield np.concatenate([self._space_as_bytes, own]) if join == SPACE else own

    def decode(self, ids: Ids, previous: int | None = None) -> bytes:
        """Return the bytes of `ids`; see `Tokenizer.decode`.

        SentencePiece decodes each run between control tokens, without the table of byte counts. It decodes byte pieces
        that are not UTF-8 to U+FFFD. A run with a U+FFFD is joined from the bytes of its pieces instead.
        """
        array = checked(ids, self.vocab_size).reshape(-1)
        silent = np.flatnonzero(self._control[array])
        runs = [run[index > 0 :].tolist() for index, run in enumerate(np.split(array, silent))]
        is_start = [index > 0 or (previous is not None and previous in self.control_ids) for index in range(len(runs))]
        texts = self._decode_inside(runs)
        return b"".join([self._run_bytes(*args) for args in zip(runs, texts, is_start, strict=True)])

    def _run_bytes(self, run: list[int], text: str, is_start: bool) -> bytes:
        """Return the bytes of `run`, which decodes to `text`. A leading "▁" at a document start is dropped."""
        if not run:
            return b""
        raw = b"".join([self._bytes[index] for index in run]) if _NO_TEXT in text else text.encode("utf-8")
        return raw[1:] if is_start and self._processor.id_to_piece(run[0]).startswith(SPACE) else raw

    def target_bytes(self, previous_N: Ids, targets_N: Ids) -> NDArray[np.int64]:
        """Return the bytes of each target; see `Tokenizer.target_bytes`."""
        previous, targets = checked(previous_N, self.vocab_size), checked(targets_N, self.vocab_size)
        return self._lengths[targets] - (self._control[previous] & self._leads[targets])

    def spell(self, raw: bytes) -> NDArray[np.uint16]:
        """Return `raw` as byte pieces. Bytes without a piece are left out."""
        return np.array([self._byte_ids[byte] for byte in raw if byte in self._byte_ids], dtype=np.uint16)

    def serialize(self) -> bytes:
        """Return the bytes of the `.model` file."""
        return self._blob

    def _read_pieces(self) -> None:
        model = self._processor
        ids = range(self.vocab_size)
        try:
            pieces: list[str] = [model.id_to_piece(index) for index in ids]
        except UnicodeDecodeError:
            raise UserError("SentencePiece model has a piece that is not UTF-8") from None
        # As in the published byte accounting, unknown and unused pieces have no text.
        silent = [model.is_control(index) or model.is_unknown(index) or model.is_unused(index) for index in ids]
        is_byte = [bool(model.is_byte(index)) for index in ids]
        self.control_ids = frozenset(index for index in ids if silent[index])
        self._control = np.array(silent, dtype=np.bool_)
        leads = [pieces[index].startswith(SPACE) and not silent[index] and not is_byte[index] for index in ids]
        self._leads = np.array(leads, dtype=np.bool_)
        named = [b"" if silent[i] else _byte_value(pieces[i]) if is_byte[i] else _text_of_name(pieces[i]) for i in ids]
        self._lengths = np.array([len(raw) for raw in named], dtype=np.int64)
        text = self._decoded_text(named, [index for index in ids if not silent[index] and not is_byte[index]])
        wrong = next((index for index in ids if text[index] != named[index]), 0)
        _require(
            text[wrong] == named[wrong],
            f"decodes its piece {wrong}, {pieces[wrong]!r}, to {text[wrong]!r}, which would count "
            f"{self._lengths[wrong]} bytes; train one without denormalization rules",
        )
        self._bytes = text
        _require(not all(silent), "has no piece with text")
        self._space_inside_piece = any(SPACE in piece.lstrip(SPACE) for piece in pieces)
        self._byte_ids = {text[index][0]: index for index in ids if is_byte[index]}
        self._space_as_bytes = self.spell(_SPACE_BYTES)
        self._space_id = pieces.index(SPACE) if SPACE in pieces else None

    def _decoded_text(self, named: list[bytes], spelled: list[int]) -> list[bytes]:
        """Return `named`, with the pieces of `spelled` replaced by what SentencePiece decodes inside a text."""
        text = list(named)
        # SentencePiece drops spaces at the start of a text, so another piece must come first.
        decode = self._processor.decode
        self._first = next(([index] for index in spelled if decode([index])), [])
        if self._first:
            for index, found in zip(spelled, self._decode_inside([[index] for index in spelled]), strict=True):
                text[index] = found.encode("utf-8")
        return text

    def _decode_inside(self, runs: list[list[int]]) -> list[str]:
        """Decode each of `runs` as if text preceded it. Returns U+FFFD if no piece decodes to text."""
        if not self._first:
            return [_NO_TEXT for _ in runs]
        decode, inputs = self._processor.decode, [self._first + run for run in runs]
        # For a list SentencePiece starts threads, which take longer than one short run.
        texts = decode(inputs) if len(inputs) > 1 else [decode(inputs[0])]
        before = decode(self._first)
        return [both.removeprefix(before) for both in texts]

    def _detect_space_handling(self) -> None:
        """Detect how the model treats spaces, by examples: SentencePiece does not expose its normalizer settings."""
        letter = self._processor.normalize("a")
        _require(not letter.endswith(SPACE), "treats whitespace as a suffix of words, which is not supported")
        self._adds_space = letter.startswith(SPACE)
        keeps_spaces = self._processor.normalize(" a  b ") == f"{SPACE * self._adds_space}{SPACE}a{SPACE * 2}b{SPACE}"
        self._preserves_space_symbol = (
            keeps_spaces and not self._adds_space and len(self._space_as_bytes) == len(_SPACE_BYTES)
        )
        guard, guarded = self._processor.encode("x"), self._processor.encode("x x")
        self._guard_length = len(guard)
        self._can_cut = not self._space_inside_piece and guarded[: self._guard_length] == guard

    def _parts(self, text: str, first: str = "") -> Iterator[tuple[str, str]]:
        """Yield the parts of `text` to encode separately, each with its join to the one before: "▁", "cut" or ""."""
        pieces = text.split(SPACE) if self._preserves_space_symbol else [text]
        for index, piece in enumerate(pieces):
            join, start = SPACE if index else first, 0
            # No piece contains a space after other text, so a cut before a space between two words keeps the ids.
            while self._can_cut and len(piece) - start > self.cut_chars:
                cut = _CUT.search(piece, start + self.cut_chars)
                if cut is None:
                    break
                yield join, piece[start : cut.start()]
                join, start = "cut", cut.start()
            yield join, piece[start:]

    def _long_parts(self, texts: Iterable[str]) -> Iterator[tuple[str, str]]:
        """Yield the parts of the concatenation of `texts`, of which it holds what is after the last possible cut."""
        held: list[str] = []
        first = ""
        for text in sliced(texts, PIECE_CHARS):
            if cut := self._last_cut(text):
                yield from self._parts("".join([*held, text[:cut]]), first)
                held, first = [], "cut"
            held.append(text[cut:])
        yield from self._parts("".join(held), first)

    def _last_cut(self, text: str) -> int:
        """Return where `text` can be cut last, or 0."""
        cut = text.rfind(" ") if self._can_cut else 0
        while cut > 0 and not _CUT.match(text, cut):
            cut = text.rfind(" ", 0, cut)
        return max(cut, 0)

    def _with_first_space(self, ids: NDArray[np.uint16]) -> NDArray[np.uint16]:
        """Put a space before the ids of a document that begins with one, of which the first "▁" counts no byte."""
        if ids.size and self._leads[ids[0]] and not self._adds_space and self._space_id is not None:
            return np.concatenate([np.array([self._space_id], dtype=np.uint16), ids])
        return ids


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(f"SentencePiece model {message}")


def _load(blob: bytes) -> sentencepiece.SentencePieceProcessor:
    _require(len(blob) > 0, "is empty")
    sentencepiece.set_min_log_level(2)
    try:
        processor = sentencepiece.SentencePieceProcessor()
        processor.load_from_serialized_proto(bytes(blob))
    except (RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"not a SentencePiece model, or damaged: {reason}") from None
    _require(processor.get_piece_size() > 0, "has no pieces")
    return processor


def _text_of_name(piece: str) -> bytes:
    """Return the text of a piece, from its name."""
    return piece.replace(SPACE, " ").encode("utf-8")


def _byte_value(piece: str) -> bytes:
    match = _BYTE_PIECE.fullmatch(piece)
    if match is None:
        raise UserError(f"SentencePiece model has a byte piece named {piece!r}; it should look like <0x0A>")
    return bytes.fromhex(match[1])
