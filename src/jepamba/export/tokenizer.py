"""Writes a tokenizer as `tokenizer.json`, which transformers reads without code of ours.

In a SentencePiece model "▁" is a space. Here a piece has the space itself, so that the character "▁" in a text, which
no piece has, becomes three byte pieces, as `jepamba.text.SentencePieceTokenizer` encodes it.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import sentencepiece

from jepamba.errors import UserError
from jepamba.text import Tokenizer
from jepamba.text.pieces import SPACE

_BPE = 2
"""The model type of BPE in a SentencePiece model."""
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6
"""Types of pieces in a SentencePiece model."""


@dataclass(frozen=True)
class TokenizerFiles:
    """A tokenizer for transformers."""

    files: dict[str, bytes]
    """Contents by name. `tokenizer.model` alone, the SentencePiece model, if `tokenizer.json` cannot express it."""
    bos_id: int | None
    """Starts a document, and so ends the one before; None: nothing does."""
    pad_id: int | None


def tokenizer_files(tokenizer: Tokenizer) -> TokenizerFiles:
    """Return the files of `tokenizer`."""
    if tokenizer.kind == "bytes":
        return _byte_files(tokenizer.separator)
    return _sentencepiece_files(tokenizer.serialize())


def _byte_files(separator: bool) -> TokenizerFiles:
    """A token per byte, named as in GPT-2: printable bytes by their character, the others by U+0100 and following."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    names = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    bos = "\0" if separator else None
    if bos is not None:
        names[0] = bos
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    parts = {
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        # The name of a NUL in a text is unknown if byte 0 is the separator, and so becomes the separator.
        "model": _bpe({names[byte]: byte for byte in range(256)}, [], unknown=bos, fuse=False, byte_fallback=False),
    }
    return _files(parts, {bos: 0} if bos else {}, bos, bos)


def _sentencepiece_files(blob: bytes) -> TokenizerFiles:
    """The merges of BPE in the order of their scores, and the normalizer."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=blob)
    bos_id, pad_id = processor.bos_id(), processor.pad_id()
    pad_id = pad_id if pad_id >= 0 else bos_id
    model = dict(_fields(blob))
    trainer, normalizer = dict(_fields(model.get(2, b""))), dict(_fields(model.get(3, b"")))
    pieces = [_piece(value) for number, value in _fields(blob) if number == 1]
    names = [name.replace(SPACE, " ") if kind == _NORMAL else name for name, _, kind in pieces]
    kinds = {kind for _, _, kind in pieces}
    writes_spaces = not normalizer.get(5, 1)
    others = kinds - {_NORMAL, _UNKNOWN, _CONTROL, _BYTE}
    if trainer.get(3) != _BPE or writes_spaces or others or len(set(names)) < len(names):
        return TokenizerFiles({"tokenizer.model": blob}, bos_id, pad_id)

    adds_space, removes_spaces = bool(normalizer.get(3, 1)), bool(normalizer.get(4, 1))
    ranks = {names[i]: -score for i, (_, score, kind) in enumerate(pieces) if kind == _NORMAL}
    merges = sorted(
        (rank, cut, name[:cut], name[cut:])
        for name, rank in ranks.items()
        for cut in range(1, len(name))
        if name[:cut] in ranks and name[cut:] in ranks
    )
    unknown = names[processor.unk_id()]
    parts = {
        "normalizer": _normalizer(normalizer.get(2, b""), adds_space, removes_spaces, " " in ranks),
        # The space that is put before a first space is a token of its own.
        "pre_tokenizer": None if adds_space or removes_spaces else _split(r"\A (?= )"),
        "decoder": _sequence(
            "decoders", [{"type": "ByteFallback"}, {"type": "Fuse"}, *_first_space(adds_space, removes_spaces)]
        ),
        "model": _bpe(
            {name: i for i, name in enumerate(names)},
            [[left, right] for _, _, left, right in merges],
            unknown=unknown,
            fuse=True,
            byte_fallback=_BYTE in kinds,
        ),
    }
    special = {name: i for i, name in enumerate(names) if pieces[i][2] in (_UNKNOWN, _CONTROL)}
    return _files(parts, special, names[bos_id], names[pad_id], unknown)


def _normalizer(charsmap: bytes, adds_space: bool, removes_spaces: bool, has_space: bool) -> dict[str, Any]:
    """Normalise a text as SentencePiece does, and put a space before a first space, of which the first has no bytes."""
    steps: list[dict[str, Any]] = []
    if charsmap:
        steps.append({"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap).decode()})
    if removes_spaces:
        steps += [_replace(" {2,}", " "), _replace(r"\A ", "")]
    if adds_space:
        steps.append({"type": "Prepend", "prepend": " "})
    elif not removes_spaces and has_space:
        steps.append(_replace(r"\A ", "  "))
    if adds_space or removes_spaces:
        steps.append(_replace(SPACE, " "))  # SentencePiece takes "▁" for a space
    if removes_spaces:
        steps.append(_replace(r" +\z", ""))
    return _sequence("normalizers", steps)


def _first_space(adds_space: bool, removes_spaces: bool) -> list[dict[str, Any]]:
    """Return the decoder that removes the space that `_normalizer` adds to the start of a text."""
    if adds_space:
        return [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]
    return [] if removes_spaces else [_replace(r"\A  ", " ")]


def _files(
    parts: dict[str, Any], special: dict[str, int], bos: str | None, pad: str | None, unknown: str | None = None
) -> TokenizerFiles:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    texts = [{"Sequence": {"id": name, "type_id": 0}} for name in ("A", "B")]
    start = [{"SpecialToken": {"id": bos, "type_id": 0}}] if bos else []
    ids = {bos: {"id": bos, "ids": [special[bos]], "tokens": [bos]}} if bos else {}
    template = {"type": "TemplateProcessing", "single": [*start, texts[0]], "pair": [*start, *texts]}
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, "content": name, **flags} for name, number in special.items()],
        **parts,
        "post_processor": {**template, "special_tokens": ids},
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": bos,
        "pad_token": pad,
        "unk_token": unknown,
        "padding_side": "left",
        "split_special_tokens": True,  # "<s>" in a text is text
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    settings = {name: value for name, value in settings.items() if value is not None}
    files = {"tokenizer.json": content, "tokenizer_config.json": settings}
    return TokenizerFiles(
        {name: json.dumps(value, ensure_ascii=False, indent=1).encode() for name, value in files.items()},
        special[bos] if bos else None,
        special[pad] if pad else None,
    )


def _bpe(
    vocab: dict[str, int], merges: list[list[str]], *, unknown: str | None, fuse: bool, byte_fallback: bool
) -> dict[str, Any]:
    rest = {"dropout": None, "continuing_subword_prefix": None, "end_of_word_suffix": None, "ignore_merges": False}
    choices = {"unk_token": unknown, "fuse_unk": fuse, "byte_fallback": byte_fallback}
    return {"type": "BPE", **rest, **choices, "vocab": vocab, "merges": merges}


def _sequence(key: str, steps: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "Sequence", key: steps}


def _replace(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _piece(message: bytes) -> tuple[str, float, int]:
    """Return name, score and type of a piece."""
    fields = dict(_fields(message))
    return fields[1].decode(), struct.unpack("<f", fields.get(2, bytes(4)))[0], fields.get(3, _NORMAL)


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Yield number and value, int or bytes, of each field of a protobuf `message` that SentencePiece has read.

    Raises `UserError` for a group, an old type of field that SentencePiece would skip.
    """
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            value |= (byte & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if byte < 0x80:
                return value

    while at < len(message):
        key = varint()
        if key & 7 == 0:
            yield key >> 3, varint()
            continue
        if key & 7 not in (1, 2, 5):
            raise UserError("the SentencePiece model has fields of an unknown type, so it cannot be exported")
        size = {1: 8, 5: 4}.get(key & 7) or varint()
        yield key >> 3, message[at : at + size]
        at += size
