"""SentencePiece models: encoding, and the exact bytes of every piece.

Where a model's pieces stand for spaces, "▁" (U+2581) does: in a piece, "▁" is one byte of text, except that a leading
one counts nothing right after a control token, where a model puts it in front of a document of its own accord (spec
section 3). What is counted comes from a table made of the pieces' names by this rule; what is decoded, from the
library's own decoder each time: two sources, so that comparing them means something.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence

import numpy as np
import sentencepiece
from numpy.typing import NDArray

from jepamba.errors import UserError
from jepamba.text.protocol import Ids, Kind, checked, utf8

SPACE = "▁"
_SPACE_BYTES = SPACE.encode()
_CUT = re.compile(r"(?<=[A-Za-z0-9]) (?=[A-Za-z0-9])")
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_NO_TEXT = "\N{REPLACEMENT CHARACTER}"
_THREADS = min(os.cpu_count() or 1, 8)


class SentencePieceTokenizer:
    """A SentencePiece model (BPE or unigram), with or without byte fallback.

    Arguments: `blob`, the bytes of a `.model` file. Raises `UserError` if they are no valid model, or one with more
    than 65,536 pieces, without BOS, with whitespace as a suffix, or with a piece that its library decodes to other text
    than the piece's name (a model with denormalisation rules may have some).

    `encode` gives the library's ids, with two exceptions that keep text whole. A document that starts with a space gets
    one more "▁" if the model adds none itself, because the first one counts nothing. The character "▁" itself, which
    the library would turn into a space, becomes its three byte pieces where the model has those and keeps spaces as
    they are.
    """

    kind: Kind = "sentencepiece"
    separator = True
    cut_chars = 1 << 16
    """Longer texts are encoded in parts of about so many characters: time and memory would grow faster than length."""

    def __init__(self, blob: bytes) -> None:
        self._processor = _load(blob)
        self._blob = bytes(blob)
        self.vocab_size: int = self._processor.get_piece_size()
        self.bos_id: int = self._processor.bos_id()
        self.fingerprint = hashlib.sha256(b"sentencepiece" + self._blob).hexdigest()
        _require(self.vocab_size <= 65536, f"has {self.vocab_size} pieces; tokens are 16 bit, at most 65,536")
        _require(self.bos_id >= 0, "has no BOS piece (<s>), which starts each document; train it with bos_id = 1")
        try:
            self._read_pieces()
            self._learn_habits()
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"SentencePiece model is damaged, its own pieces make no text: {reason}") from None

    def encode(self, text: str) -> NDArray[np.uint16]:
        """The ids of `text`, without BOS. Raises `UserError` for text that has no UTF-8 form."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.uint16]]:
        """`encode` of each text, on all cores."""
        parts: list[str] = []
        owners: list[tuple[int, str]] = []
        for index, text in enumerate(texts):
            utf8(text)
            for join, part in self._parts(text):
                owners.append((index, join))
                parts.append("x" + part if join == "cut" else part)
        found: list[list[NDArray[np.uint16]]] = [[] for _ in texts]
        for (index, join), ids in zip(owners, self._processor.encode(parts, num_threads=_THREADS), strict=True):
            if join == SPACE:
                found[index].append(self._space_as_bytes)
            # A part that follows a cut was encoded after a guard word "x", whose ids go again.
            found[index].append(np.asarray(ids[self._guard :] if join == "cut" else ids, dtype=np.uint16))
        return [self._whole(ids) for ids in found]

    def decode(self, ids: Ids, previous: int | None = None) -> bytes:
        """The bytes that `ids` stand for; see `Tokenizer.decode`.

        The library decodes what lies between control tokens, each time anew: no table of lengths takes part. It shows
        byte pieces that are no UTF-8 as U+FFFD; where there is one, the pieces' own bytes are joined instead.
        """
        array = checked(ids, self.vocab_size).reshape(-1)
        silent = np.flatnonzero(self._control[array])
        runs = [run[index > 0 :].tolist() for index, run in enumerate(np.split(array, silent))]
        starts = [index > 0 or (previous is not None and previous in self.control_ids) for index in range(len(runs))]
        texts = self._in_the_middle(runs)
        return b"".join([self._after(*given) for given in zip(runs, texts, starts, strict=True)])

    def _after(self, run: list[int], text: str, starts: bool) -> bytes:
        """`text`, what the library makes of `run`; less its leading "▁" if it `starts` a document."""
        if not run:
            return b""
        raw = b"".join([self._bytes[index] for index in run]) if _NO_TEXT in text else text.encode("utf-8")
        return raw[1:] if starts and self._processor.id_to_piece(run[0]).startswith(SPACE) else raw

    def target_bytes(self, previous_N: Ids, targets_N: Ids) -> NDArray[np.int64]:
        """Bytes of each target; see `Tokenizer.target_bytes`."""
        previous, targets = checked(previous_N, self.vocab_size), checked(targets_N, self.vocab_size)
        return self._lengths[targets] - (self._control[previous] & self._leads[targets])

    def spell(self, raw: bytes) -> NDArray[np.uint16]:
        """`raw`, text or not, in byte pieces; bytes for which the model has no piece are left out."""
        return np.array([self._byte_ids[byte] for byte in raw if byte in self._byte_ids], dtype=np.uint16)

    def serialize(self) -> bytes:
        """The bytes of the `.model` file."""
        return self._blob

    def lossless_on(self, text: str) -> bool:
        """Whether `text` comes back to the byte; a model that normalises (NFKC, spaces) may change it."""
        return self.decode(self.encode(text), previous=self.bos_id) == utf8(text)

    def _read_pieces(self) -> None:
        model = self._processor
        ids = range(self.vocab_size)
        try:
            pieces: list[str] = [model.id_to_piece(index) for index in ids]
        except UnicodeDecodeError:
            raise UserError("SentencePiece model has a piece that is no UTF-8") from None
        # As in the published accounting, an unknown or unused piece stands for no text either.
        silent = [model.is_control(index) or model.is_unknown(index) or model.is_unused(index) for index in ids]
        is_byte = [bool(model.is_byte(index)) for index in ids]
        self.control_ids = frozenset(index for index in ids if silent[index])
        self._control = np.array(silent, dtype=np.bool_)
        leads = [pieces[index].startswith(SPACE) and not silent[index] and not is_byte[index] for index in ids]
        self._leads = np.array(leads, dtype=np.bool_)
        named = [b"" if silent[i] else _byte_value(pieces[i]) if is_byte[i] else _named(pieces[i]) for i in ids]
        self._lengths = np.array([len(raw) for raw in named], dtype=np.int64)
        text = self._decoded(named, [index for index in ids if not silent[index] and not is_byte[index]])
        wrong = next((index for index in ids if text[index] != named[index]), 0)
        _require(
            text[wrong] == named[wrong],
            f"decodes its piece {wrong}, {pieces[wrong]!r}, to {text[wrong]!r}, which would count "
            f"{self._lengths[wrong]} bytes; train one without denormalisation rules",
        )
        self._bytes = text
        _require(not all(silent), "has no piece that stands for text")
        self._crossing = any(SPACE in piece.lstrip(SPACE) for piece in pieces)
        self._byte_ids = {text[index][0]: index for index in ids if is_byte[index]}
        self._space_as_bytes = self.spell(_SPACE_BYTES)
        self._space_id = pieces.index(SPACE) if SPACE in pieces else None

    def _decoded(self, named: list[bytes], spelled: list[int]) -> list[bytes]:
        """`named`, those of `spelled` replaced by what the library decodes them to in the middle of a text."""
        text = list(named)
        # The library drops spaces at the start of what it decodes, so that something has to come before.
        decode = self._processor.decode
        self._first = next(([index] for index in spelled if decode([index])), [])
        if self._first:
            for index, found in zip(spelled, self._in_the_middle([[index] for index in spelled]), strict=True):
                text[index] = found.encode("utf-8")
        return text

    def _in_the_middle(self, runs: list[list[int]]) -> list[str]:
        """What the library decodes each of `runs` to if there is text before it; U+FFFD if it knows of no text."""
        if not self._first:
            return [_NO_TEXT for _ in runs]
        before = self._processor.decode(self._first)
        return [both.removeprefix(before) for both in self._processor.decode([self._first + run for run in runs])]

    def _learn_habits(self) -> None:
        """Find out by trial what the model does to spaces: its normaliser is not part of the library's interface."""
        letter = self._processor.normalize("a")
        _require(not letter.endswith(SPACE), "treats whitespace as a suffix of words, which this program does not read")
        self._adds_space = letter.startswith(SPACE)
        keeps_spaces = self._processor.normalize(" a  b ") == f"{SPACE * self._adds_space}{SPACE}a{SPACE * 2}b{SPACE}"
        self._spells_space = keeps_spaces and not self._adds_space and len(self._space_as_bytes) == len(_SPACE_BYTES)
        guard, after = self._processor.encode("x"), self._processor.encode("x x")
        self._guard = len(guard)
        self._cuts = not self._crossing and after[: self._guard] == guard

    def _parts(self, text: str) -> list[tuple[str, str]]:
        """`text` in parts to encode one by one, each with what joins it to the part before: "▁", "cut" or ""."""
        pieces = text.split(SPACE) if self._spells_space else [text]
        parts: list[tuple[str, str]] = []
        for index, piece in enumerate(pieces):
            join, start = SPACE if index else "", 0
            # No piece spans a space from its left, so encoding the sides of one between two words apart is the same.
            while self._cuts and len(piece) - start > self.cut_chars:
                cut = _CUT.search(piece, start + self.cut_chars)
                if cut is None:
                    break
                parts.append((join, piece[start : cut.start()]))
                join, start = "cut", cut.start()
            parts.append((join, piece[start:]))
        return parts

    def _whole(self, found: list[NDArray[np.uint16]]) -> NDArray[np.uint16]:
        ids = found[0] if len(found) == 1 else np.concatenate(found)
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
        raise UserError(f"SentencePiece model is damaged or none at all: {reason}") from None
    _require(processor.get_piece_size() > 0, "has no pieces")
    return processor


def _named(piece: str) -> bytes:
    """The text that a piece's name stands for."""
    return piece.replace(SPACE, " ").encode("utf-8")


def _byte_value(piece: str) -> bytes:
    match = _BYTE_PIECE.fullmatch(piece)
    if match is None:
        raise UserError(f"SentencePiece model has a byte piece named {piece!r}; it should look like <0x0A>")
    return bytes.fromhex(match[1])
