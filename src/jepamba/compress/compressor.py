"""A model as a lossless compressor of files: any bytes in, the same bytes out, or a refusal."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from pathlib import Path

from jepamba.artifact import Artifact, load_artifact
from jepamba.compress.corrections import corrected, corrections
from jepamba.compress.lanes import MOST, LaneLayout, lane_layout
from jepamba.compress.packed import MAX_BYTES, CompressedFile
from jepamba.compress.side import read_corrections, write_corrections
from jepamba.compress.stream import read_stream, write_stream
from jepamba.compress.tokens import Ids, byte_lengths, to_bytes, to_ids
from jepamba.errors import UserError
from jepamba.io import read_untrusted
from jepamba.progress import Report


@dataclass(frozen=True)
class Compressed:
    """A compressed file and what it is made of."""

    content: bytes
    original_bytes: int
    tokens: int
    """0: stored as it is, because the model would have made it larger."""
    lanes: int
    corrections: int
    """How often the tokens' text is not the original's."""
    corrections_bytes: int
    nats: float
    """What the model itself says the tokens cost: −ln p summed over the steps that were coded."""

    @property
    def bpb(self) -> float:
        """Bits of the file per byte of the original; 0 for an empty original."""
        return 8 * len(self.content) / max(self.original_bytes, 1)

    @property
    def model_bpb(self) -> float:
        """The model's own score of the same tokens, in bits per byte of the original."""
        return self.nats / math.log(2) / max(self.original_bytes, 1)


class Compressor:
    """The model of one artifact, on the CPU. `sha256` is the artifact file's."""

    def __init__(self, artifact: Artifact, sha256: bytes) -> None:
        self.artifact, self.sha256 = artifact, sha256

    @classmethod
    def open(cls, path: Path) -> Compressor:
        """The compressor of the artifact at `path`. Raises `UserError` if it is not sound."""
        artifact = load_artifact(path)
        with path.open("rb") as file:
            return cls(artifact, hashlib.file_digest(file, "sha256").digest())

    def compress(self, data: bytes, lanes: int = 0, progress: Report | None = None) -> Compressed:
        """`data`, any bytes, compressed. The same data, artifact and machine give the same file.

        Arguments: `lanes`, read in parallel (0: one for 4,096 tokens, up to 1,024; small files have more); fewer make a
        slightly smaller file, and both directions slower. Raises `UserError` for more lanes than tokens, or than 1,024,
        and for more than 256 MiB of data.
        """
        if len(data) > MAX_BYTES:
            raise UserError(f"{len(data):,} bytes to compress: at most {MAX_BYTES:,}; cut the file into parts")
        stored = CompressedFile(len(data), _digest(data), self.sha256, 0, 0, bytes(8), (data,)).to_bytes()
        ids = to_ids(self.artifact.tokenizer, data)
        if not ids.size:
            return Compressed(stored, len(data), 0, 0, 0, 0, 0.0)
        if not 0 <= lanes <= min(ids.size, MOST):
            raise UserError(f"{lanes:,} lanes: 1 to {min(ids.size, MOST):,} for this file, or 0 to leave it open")
        coded = self.code(data, ids, LaneLayout(ids.size, lanes) if lanes else lane_layout(ids.size), progress)
        return replace(coded, content=stored, tokens=0, lanes=0) if len(coded.content) > len(stored) else coded

    def code(self, data: bytes, ids: Ids, plan: LaneLayout, progress: Report | None = None) -> Compressed:
        """`data`, whose tokens are `ids`, coded by the model in the lanes of `plan`, however large that is."""
        tokenizer = self.artifact.tokenizer
        changes = corrections(to_bytes(tokenizer, ids), data)
        side = write_corrections(changes, ids, byte_lengths(tokenizer, ids))
        sections, probe, nats = write_stream(self.artifact, ids, plan, progress)
        packed = CompressedFile(
            len(data), _digest(data), self.sha256, plan.tokens, plan.lanes, probe, tuple(sections), side
        )
        return Compressed(packed.to_bytes(), len(data), plan.tokens, plan.lanes, len(changes), len(side), nats)

    def decompress(self, content: bytes, progress: Report | None = None) -> bytes:
        """The original of `content`, to the byte. Raises `UserError` for anything else, with no partial result."""
        packed = CompressedFile.from_bytes(content)
        if packed.model != self.sha256:
            raise UserError(
                f"it was compressed with the model whose sha256 is {packed.model.hex()[:16]}…, this one's is "
                f"{self.sha256.hex()[:16]}…"
            )
        data = self._coded(packed, progress) if packed.tokens else packed.sections[0]
        if _digest(data) != packed.original:
            raise UserError(
                "what it decodes to is not what was compressed: it is forged, or this machine computes a little "
                "differently from the one that compressed it"
            )
        return data

    def decompress_file(self, path: Path, progress: Report | None = None) -> bytes:
        """`decompress` of the file at `path`, which the error names."""
        content = read_untrusted(path, "a compressed file", 2 * MAX_BYTES)
        try:
            return self.decompress(content, progress)
        except UserError as error:
            raise UserError(f"{path}: not decompressed: {error}") from error

    def _coded(self, packed: CompressedFile, progress: Report | None) -> bytes:
        tokenizer = self.artifact.tokenizer
        plan = LaneLayout(packed.tokens, packed.lanes)
        ids = read_stream(self.artifact, packed.sections, plan, packed.probe, progress)
        changes = read_corrections(packed.corrections, ids, byte_lengths(tokenizer, ids))
        return corrected(to_bytes(tokenizer, ids), changes, packed.size)


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:16]
