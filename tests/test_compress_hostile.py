"""Compressed files that are damaged, forged, or of another model or machine: each is refused, none is believed."""

from __future__ import annotations

import os
import zlib
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from compress_cases import TEXT, artifact_at, coded, sentences, tokenizer_named
from jepamba.compress import Compressor, compiled, steps, token_coding
from jepamba.compress.file_format import MAGIC, MAX_FILE_BYTES, CompressedFile
from jepamba.compress.lanes import COMPILED, TORCH, LaneBatch
from jepamba.errors import UserError
from jepamba.io import read_untrusted
from jepamba.ops import cpp
from jepamba.ops.dispatch import use_kernels

PLAIN = b"abc " * 30
DATA = PLAIN + "ﬁ\n\n".encode()


def decompressed(model: Compressor, path: Path) -> bytes:
    return model.decompress_named(str(path), read_untrusted(path, "a compressed file", MAX_FILE_BYTES))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Compressor:
    return Compressor.open(artifact_at(tmp_path_factory.mktemp("m") / "a.jepa", sentences(), PLAIN))


@pytest.fixture(scope="module", params=[TORCH, COMPILED])
def sound(model: Compressor, request: pytest.FixtureRequest) -> bytes:
    """A file of each variant of the steps."""
    if request.param == COMPILED and cpp.compiler() is None:
        pytest.skip("needs a C++ compiler")
    with use_kernels(request.param == COMPILED):
        content = coded(model, DATA, lanes=32)
    assert CompressedFile.from_bytes(content).variant == request.param
    assert model.decompress(content) == DATA
    return content


def refused(model: Compressor, content: bytes) -> str:
    with pytest.raises(UserError) as caught:
        model.decompress(content)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def sealed(content: bytes) -> bytes:
    """`content` with a right checksum at its end, as an attacker would write it."""
    return content[:-4] + zlib.crc32(content[:-4]).to_bytes(4, "little")


def test_every_truncation_and_addition_is_refused(model: Compressor, sound: bytes) -> None:
    for length in range(len(sound)):
        refused(model, sound[:length])
    assert "checksum" in refused(model, sound + b"\0")


def test_every_flipped_byte_is_refused(model: Compressor, sound: bytes) -> None:
    for position in range(len(sound)):
        changed = bytearray(sound)
        changed[position] ^= 0x10
        refused(model, bytes(changed))


@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_no_flipped_byte_under_a_right_checksum_is_taken_for_right(model: Compressor, sound: bytes, every: int) -> None:
    for position in range(0, len(sound) - 4, every):
        changed = bytearray(sound)
        changed[position] ^= 0x10
        content = sealed(bytes(changed))
        # What fills a section up may change and mean the same.
        with suppress(UserError):
            assert model.decompress(content) == DATA


def test_another_model_and_another_version_are_refused(model: Compressor, sound: bytes, tmp_path: Path) -> None:
    assert "sha256" in refused(Compressor.open(artifact_at(tmp_path / "b.jepa", sentences(), TEXT)), sound)
    assert "version 51" in refused(model, sealed(sound[:9] + b"\2" + sound[10:]))
    assert "does not start" in refused(model, b"PK" + sound)
    assert "cut short" in refused(model, MAGIC)


@pytest.mark.parametrize(
    "change",
    [
        {"size": 2**60}, {"size": 0}, {"tokens": 2**31}, {"tokens": 1}, {"tokens": 0}, {"lanes": 0},
        {"lanes": 1025}, {"lanes": 33}, {"variant": 0}, {"variant": 3}, {"probe": bytes(8)}, {"original": bytes(16)},
        {"corrections": b""}, {"sections": ()}, {"sections": (bytes(8),)}, {"sections": (bytes(400),)},
        {"sections": (b"",)}, {"corrections": bytes(4)}, {"corrections": b"\xff" * 40}, {"sections": (b"\xff" * 41,)},
    ],
)  # fmt: skip
def test_wrong_declarations_are_refused(model: Compressor, sound: bytes, change: dict[str, object]) -> None:
    refused(model, replace(CompressedFile.from_bytes(sound), **change).to_bytes())


def test_another_arithmetic_is_said_before_any_work(
    model: Compressor, sound: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = LaneBatch.step
    monkeypatch.setattr(LaneBatch, "step", lambda self, ids: before(self, ids) * (1 + 2e-4))
    monkeypatch.setattr(compiled, "RMS_EPS", 1.001e-6)
    monkeypatch.setattr(token_coding, "_in_threads", None)
    assert "does not compute the same probabilities" in refused(model, sound)


def test_tokens_that_no_tokenizer_writes_are_refused(model: Compressor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model may have more symbols than its tokenizer: those beyond are damage, not an error of ours."""
    with use_kernels(False):
        content = coded(model, PLAIN)
    monkeypatch.setattr(type(model.artifact.tokenizer), "vocab_size", 5, raising=False)
    monkeypatch.setattr(model.artifact.tokenizer, "vocab_size", 5)
    monkeypatch.setattr(steps, "probe", lambda artifact, width: CompressedFile.from_bytes(content).probe)
    assert "damaged" in refused(model, content)


def test_corrections_that_do_not_fit_are_stopped_at_the_first(
    model: Compressor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A correction that puts more than was declared is refused before it is made."""
    content = coded(model, PLAIN + b"\n\n\n")
    refused(model, replace(CompressedFile.from_bytes(content), size=len(PLAIN)).to_bytes())


def test_the_file_s_name_is_in_the_error(model: Compressor, sound: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.jpc"
    path.write_bytes(sound[:-1])
    with pytest.raises(UserError, match=r"x\.jpc: not decompressed"):
        decompressed(model, path)
    path.write_bytes(sound)
    assert decompressed(model, path).startswith(PLAIN)
    os.mkfifo(tmp_path / "pipe")
    for odd in (tmp_path / "pipe", tmp_path, tmp_path / "absent", Path("/dev/zero")):
        with pytest.raises(UserError, match=str(odd)):
            decompressed(model, odd)


@pytest.mark.parametrize("kernels", [False, True])
def test_a_failing_batch_stops_the_others(tmp_path: Path, kernels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged section is an error at once, not after every other section was read."""
    model = Compressor.open(artifact_at(tmp_path / "a.jepa", tokenizer_named("bytes"), TEXT))
    with use_kernels(kernels):
        content = coded(model, TEXT[:4000], 80)
    found = CompressedFile.from_bytes(content)
    calls: list[int] = []
    for owner in (LaneBatch, compiled.CompiledSteps):
        before = owner.step
        monkeypatch.setattr(owner, "step", lambda *given, before=before: (calls.append(1), before(*given))[1])
    wrong = replace(found, sections=(b"\xff" * len(found.sections[0]), *found.sections[1:]))
    with pytest.raises(UserError, match="damaged"):
        model.decompress(wrong.to_bytes())
    assert 0 < len(calls) < len(found.sections) * 50
