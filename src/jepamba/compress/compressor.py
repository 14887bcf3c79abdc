"""Compress and decompress arbitrary bytes with the model of an artifact."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from jepamba.artifact import Artifact, load_artifact
from jepamba.artifact.locate import SHIPPED, locate
from jepamba.compress.correction_coding import decode_corrections, encode_corrections
from jepamba.compress.corrections import apply_corrections, find_corrections
from jepamba.compress.file_format import MAX_BYTES, CompressedFile
from jepamba.compress.lanes import MAX_LANES, TORCH, LaneLayout, lane_count
from jepamba.compress.steps import fastest_steps, steps_of_file
from jepamba.compress.token_coding import decode_tokens, encode_tokens
from jepamba.compress.tokens import Ids, byte_lengths, to_bytes, to_ids
from jepamba.errors import DivergedError, UserError
from jepamba.io import sha256_of
from jepamba.progress import Report


@dataclass(frozen=True)
class Compressed:
    """A compressed file and its statistics."""

    content: bytes
    original_bytes: int
    tokens: int
    """0 if the data are stored uncompressed, because compression would have enlarged them."""
    lanes: int
    corrections: int
    """Number of differences between the decoded text and the original."""
    corrections_bytes: int
    nats: float
    """Sum of the model's −ln p over the coded tokens."""

    @property
    def bpb(self) -> float:
        """Bits of the file per byte of the original."""
        return 8 * len(self.content) / max(self.original_bytes, 1)

    @property
    def model_bpb(self) -> float:
        """The model's cross-entropy on the tokens, in bits per byte of the original."""
        return self.nats / math.log(2) / max(self.original_bytes, 1)


def find_model(name: str, content: bytes, candidates: Iterable[Path]) -> Path:
    """Return the first of the artifacts `candidates` whose sha256 is the one in a compressed file.

    Raises `UserError`, which starts with `name`, if none is, or the file is not valid.
    """
    with _errors_name(name):
        sha256 = CompressedFile.from_bytes(content).model.hex()
    for candidate in candidates:
        if sha256_of(candidate, "the artifact") == sha256:
            return candidate
    raise UserError(
        f"{name}: not decompressed: the sha256 of its model is {sha256[:16]}…, which neither the model in this version "
        "of the package nor an artifact in the folder runs has; name the model with --model"
    )


class Compressor:
    """Compresses with the model of an artifact, on the CPU. `sha256` is the digest of the artifact file."""

    def __init__(self, artifact: Artifact, sha256: bytes) -> None:
        self.artifact, self.sha256 = artifact, sha256

    @classmethod
    def open(cls, path: str | Path | None = None) -> Compressor:
        """Load an artifact, the folder of a run, or `hf://owner/name`. None: the small model in the package.

        Raises `UserError` if it is missing or not valid.
        """
        place = locate(SHIPPED if path is None else path)
        artifact = load_artifact(place)
        return cls(artifact, bytes.fromhex(sha256_of(place, "the artifact")))

    def compress(self, data: bytes, lanes: int = 0, progress: Report | None = None) -> Compressed:
        """Compress any bytes. The same data, artifact and machine give the same file.

        Arguments:
            lanes: Number of lanes that are coded in parallel. 0: about one per 2,048 tokens, up to 1,024, and more for
                small files. Fewer lanes give a slightly smaller file, but are slower in both directions.

        Raises `UserError` for more lanes than tokens, for more than 1,024 lanes, and for more than 256 MiB of data.
        """
        if len(data) > MAX_BYTES:
            raise UserError(f"{len(data):,} bytes to compress: at most {MAX_BYTES:,}; split the file")
        uncompressed = CompressedFile(len(data), _digest(data), self.sha256, TORCH, 0, 0, bytes(8), (data,)).to_bytes()
        ids = to_ids(self.artifact.tokenizer, data)
        if not ids.size:
            return Compressed(uncompressed, len(data), 0, 0, 0, 0, 0.0)
        if not 0 <= lanes <= min(ids.size, MAX_LANES):
            raise UserError(f"{lanes:,} lanes: 1 to {min(ids.size, MAX_LANES):,} for this file, or 0 for the default")
        coded = self.code(data, ids, lanes or lane_count(ids.size), progress)
        if not math.isfinite(coded.nats):
            raise DivergedError
        larger = len(coded.content) > len(uncompressed)
        return replace(coded, content=uncompressed, tokens=0, lanes=0) if larger else coded

    def code(self, data: bytes, ids: Ids, lanes: int, progress: Report | None = None) -> Compressed:
        """Compress `data`, whose tokens are `ids`, in `lanes` lanes, even if that enlarges it."""
        tokenizer, steps = self.artifact.tokenizer, fastest_steps(self.artifact)
        layout = LaneLayout(ids.size, lanes, steps.variant)
        changes = find_corrections(to_bytes(tokenizer, ids), data)
        side = encode_corrections(changes, ids, byte_lengths(tokenizer, ids))
        sections, probe, nats = encode_tokens(steps, ids, layout, progress)
        packed = CompressedFile(
            len(data), _digest(data), self.sha256, layout.variant, layout.tokens, lanes, probe, tuple(sections), side
        )
        return Compressed(packed.to_bytes(), len(data), layout.tokens, lanes, len(changes), len(side), nats)

    def decompress(self, content: bytes, progress: Report | None = None) -> bytes:
        """Return the original bytes. Raises `UserError` for an invalid file; there is no partial result."""
        packed = CompressedFile.from_bytes(content)
        if packed.model != self.sha256:
            raise UserError(
                f"it was compressed with the model whose sha256 is {packed.model.hex()[:16]}…, but this model's is "
                f"{self.sha256.hex()[:16]}…"
            )
        data = self._decode(packed, progress) if packed.tokens else packed.sections[0]
        if _digest(data) != packed.original:
            raise UserError(
                "the checksum of the decompressed data does not match: the file is forged, or this machine does not "
                "compute exactly as the one that compressed it"
            )
        return data

    def decompress_named(self, name: str, content: bytes, progress: Report | None = None) -> bytes:
        """`decompress`, with errors that start with `name`."""
        with _errors_name(name):
            return self.decompress(content, progress)

    def _decode(self, packed: CompressedFile, progress: Report | None) -> bytes:
        tokenizer = self.artifact.tokenizer
        layout = LaneLayout(packed.tokens, packed.lanes, packed.variant)
        steps = steps_of_file(packed.variant, self.artifact)
        ids = decode_tokens(steps, packed.sections, layout, packed.probe, progress)
        changes = decode_corrections(packed.corrections, ids, byte_lengths(tokenizer, ids))
        return apply_corrections(to_bytes(tokenizer, ids), changes, packed.size)


@contextmanager
def _errors_name(name: str) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(f"{name}: not decompressed: {error}") from error


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:16]
