"""Hostile data for the weight codec alone, without a checksum: a one-line error, no hang, bounded memory."""

from __future__ import annotations

import time
import tracemalloc
from typing import Any

import constriction
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples import examples
from jepamba.artifact.ans import WeightCodec
from jepamba.artifact.ans.histograms import Histograms
from jepamba.artifact.ans.rans import END, END_BITS, AnsEncoder, code_number
from jepamba.artifact.streams import DTYPES, STREAM_BITS, StreamSpec, Values
from jepamba.errors import UserError
from jepamba.ops.dispatch import use_kernels

KINDS = [(kind, bits) for kind, choices in STREAM_BITS.items() for bits in choices]
CODEC = WeightCodec()


def block() -> tuple[list[StreamSpec], list[Values]]:
    """A block with every kind of model: levels, low bits, and both floating-point kinds."""
    random = np.random.default_rng(0)
    streams = [
        StreamSpec("e/q", "int", 6, (150, 12)),
        StreamSpec("w/fp8", "fp8", 8, (30, 50)),
        StreamSpec("w/scale", "bf16", 16, (30,)),
        StreamSpec("d/value", "fp32", 32, (5,)),
    ]
    correlated = random.normal(0, 5, (150, 1)) @ random.normal(1, 1, (1, 12)) + random.normal(0, 2, (150, 12))
    arrays = [np.rint(correlated).clip(-31, 31), random.integers(0, 250, (30, 50)), 0x3F80 + random.integers(0, 99, 30)]
    arrays.append(random.integers(0, 2**32, 5))
    return streams, [array.astype(DTYPES[stream.kind]) for stream, array in zip(streams, arrays, strict=True)]


def refused_or_of_the_declared_shape(streams: list[StreamSpec], data: bytes) -> bool:
    """Both decoders find the same."""
    found: list[str | list[Values]] = []
    for compiled in (True, False):
        try:
            with use_kernels(compiled):
                found.append(CODEC.decode(streams, data))
        except UserError as error:
            found.append(str(error))
    first, second = found
    if isinstance(first, str):
        assert "\n" not in first
        assert second == first
        return True
    assert [array.shape for array in first] == [stream.shape for stream in streams]
    assert all((array == other).all() for array, other in zip(first, second, strict=True))
    return False


def test_flipped_bytes_and_every_truncation() -> None:
    """The data must end in the encoder's initial state, which reveals most changes. Others give other weights."""
    streams, values = block()
    data = CODEC.encode(streams, values)
    refused, places = 0, range(0, len(data), 61)
    for at in places:
        changed = bytearray(data)
        changed[at] ^= 0x41
        refused += refused_or_of_the_declared_shape(streams, bytes(changed))
    assert refused > 0.9 * len(places)
    for length in range(0, len(data), 4 * 25 + 1):
        assert refused_or_of_the_declared_shape(streams, data[:length])
    for longer in (data + bytes(4), data + b"\1\0\0\0", bytes(4) + data, data + data, data[4:] + data[:4]):
        assert refused_or_of_the_declared_shape(streams, longer)


@given(st.binary(max_size=400), st.sampled_from(KINDS), st.lists(st.integers(0, 40), max_size=3))
@settings(max_examples=examples(300), deadline=None)
def test_garbage_is_refused_in_one_line(data: bytes, kind: tuple[str, int], shape: list[int]) -> None:
    refused_or_of_the_declared_shape([StreamSpec("s", *kind, tuple(shape))], data)


@given(st.lists(st.tuples(st.integers(1, 12), st.integers(0, 2**32)), max_size=40), st.sampled_from(KINDS))
@settings(max_examples=examples(200), deadline=None)
def test_arbitrary_parameters_are_refused_or_read(numbers: list[tuple[int, int]], kind: tuple[str, int]) -> None:
    """Valid ANS data with arbitrary bases, steps, classes and coefficients."""
    encoder = AnsEncoder()
    for bits, number in numbers:
        code_number(encoder, bits, number % 2**bits)
    refused_or_of_the_declared_shape([StreamSpec("s", *kind, (30, 7))], encoder.finish())


def test_an_ordinal_out_of_range_is_refused() -> None:
    """A floating-point number of more than 16 bits."""
    encoder = AnsEncoder()
    code_number(encoder, 5, 0)  # no low bits
    code_number(encoder, 17, 0x10000 - 5)
    code_number(encoder, 8, 9)
    symbols = np.full(4, 9, dtype=np.uint8)
    Histograms(1, 10).code(encoder, np.zeros(4, dtype=np.uint16), symbols)
    with pytest.raises(UserError, match="outside"):
        CODEC.decode([StreamSpec("s", "bf16", 16, (4,))], encoder.finish())


@pytest.mark.parametrize("low", [16, 31])
def test_more_low_bits_than_bits_are_refused(low: int) -> None:
    encoder = AnsEncoder()
    code_number(encoder, 5, low)
    with pytest.raises(UserError, match="low bits"):
        CODEC.decode([StreamSpec("s", "bf16", 16, (4,))], encoder.finish())


def test_few_bytes_do_not_take_much_time_or_memory() -> None:
    """The largest stream with a predictor, from data that end at once."""
    encoder = AnsEncoder()
    code_number(encoder, 1, 1)
    stream = StreamSpec("s", "int", 4, (8192, 512))
    tracemalloc.start()
    start = time.process_time()
    try:
        with pytest.raises(UserError):
            CODEC.decode([stream], encoder.finish())
        assert tracemalloc.get_traced_memory()[1] < 16 * stream.size  # lines in single precision, and what is decoded
    finally:
        tracemalloc.stop()
    assert time.process_time() - start < 60  # no hang


def test_a_panic_of_the_library_is_one_line(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """`PanicException` is not an `Exception`. An invalid model raises a real one."""
    streams, values = block()
    data = CODEC.encode(streams, values)
    broken = constriction.stream.model.QuantizedGaussian(-5, 5)

    class Panicking:
        def __init__(self, words: Any) -> None:
            self.inner = constriction.stream.stack.AnsCoder(words)

        def decode(self, model: Any, count: int) -> Any:
            return self.inner.decode(broken, np.zeros(2), np.full(2, -1.0))

    monkeypatch.setattr("jepamba.artifact.ans.rans._decoder", Panicking)
    with pytest.raises(UserError, match="damaged"), use_kernels(False):
        CODEC.decode(streams, data)


@pytest.mark.parametrize("raised", [KeyboardInterrupt, MemoryError])
def test_an_interrupt_is_not_reported_as_damage(monkeypatch: pytest.MonkeyPatch, raised: type[BaseException]) -> None:
    class Interrupted:
        def __init__(self, words: Any) -> None:
            pass

        def decode(self, model: Any, count: int) -> Any:
            raise raised

    streams, values = block()
    data = CODEC.encode(streams, values)
    monkeypatch.setattr("jepamba.artifact.ans.rans._decoder", Interrupted)
    with pytest.raises(raised), use_kernels(False):
        CODEC.decode(streams, data)


def test_empty_data_do_not_give_the_end_number() -> None:
    assert 0 < END < 2**END_BITS
    assert refused_or_of_the_declared_shape([StreamSpec("s", "int", 4, (7,))], b"")
