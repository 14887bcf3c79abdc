"""The weight codec: lossless for any values, as documented to the bit, and near the entropy."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ans_reader import read
from examples import examples
from jepamba.artifact import inspect, load_artifact, save_artifact
from jepamba.artifact.ans import WeightCodec
from jepamba.artifact.ans.compiled import CompiledDecoder, new_decoder
from jepamba.artifact.ans.histograms import Histograms, code_integers
from jepamba.artifact.ans.parameter_search import OFF, SearchSpace
from jepamba.artifact.ans.prediction import LinearPredictor, PanelPrediction, earlier_lines, is_predictable, panel_lines
from jepamba.artifact.ans.rans import AnsDecoder, AnsEncoder, code_number, frequencies
from jepamba.artifact.codecs import CODECS, encode_all, encode_smallest
from jepamba.artifact.inspect import entropy
from jepamba.artifact.streams import DTYPES, STREAM_BITS, StreamSpec, Values
from jepamba.config import Data, Model, Run, Train
from jepamba.model import LanguageModel
from jepamba.ops.cpp import compiler
from jepamba.ops.dispatch import use_kernels
from jepamba.quant.quantizers import Fp8Quantizer, IntQuantizer
from jepamba.text import ByteTokenizer

KINDS = [(kind, bits) for kind, choices in STREAM_BITS.items() for bits in choices]
CODEC = WeightCodec()


def round_trip(streams: list[StreamSpec], values: list[Values], codec: WeightCodec = CODEC) -> bytes:
    data = codec.encode(streams, values)
    assert data == codec.encode(streams, values)
    for compiled in (True, False):
        with use_kernels(compiled):
            decoded = CODEC.decode(streams, data)
        for stream, array, again in zip(streams, values, decoded, strict=True):
            assert again.dtype == np.dtype(DTYPES[stream.kind])
            assert again.shape == stream.shape
            assert (again == array).all()
    return data


@pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler")
def test_the_decoder_is_compiled_where_it_can_be() -> None:
    data = AnsEncoder().finish()
    assert type(new_decoder(data)) is CompiledDecoder
    with use_kernels(False):
        assert type(new_decoder(data)) is AnsDecoder


def any_values(kind: str, bits: int, shape: tuple[int, ...], how: str, seed: int) -> Values:
    random = np.random.default_rng(seed)
    limit = 2 ** (bits - 1) - 1
    if how == "constant":
        raw = np.full(shape, random.integers(-limit, limit + 1) if kind == "int" else random.integers(0, 2**bits))
    elif how == "uniform":
        low, high = (-limit, limit + 1) if kind == "int" else (0, 2**bits)
        raw = random.integers(low, high, shape, dtype=np.int64)
    elif kind == "int":
        raw = np.rint(random.normal(0, limit / 3, shape)).clip(-limit, limit)
    elif kind == "fp8":
        raw = torch.from_numpy(random.normal(0, 100, shape)).float().to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    elif kind in ("bf16", "fp32"):
        dtype = torch.bfloat16 if kind == "bf16" else torch.float32
        number = torch.from_numpy(random.normal(1, 0.1, shape)).to(dtype)
        raw = number.view(torch.int16 if kind == "bf16" else torch.int32).numpy()
    else:
        raw = random.integers(97, 123, shape)
    if how == "zero rows" and len(shape) > 1:
        raw = raw.copy()
        raw[:: random.integers(1, 4)] = 0
    return np.asarray(raw).astype(DTYPES[kind])


HOW = ["constant", "uniform", "normal", "zero rows"]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(KINDS),
            st.lists(st.integers(0, 12), max_size=3),
            st.sampled_from(HOW),
            st.integers(0, 2**32),
        ),
        max_size=5,
    )
)
@settings(max_examples=examples(150), deadline=None)
def test_any_block_round_trips(block: list[tuple[tuple[str, int], list[int], str, int]]) -> None:
    """Empty streams, single values, equal values, rows of zeros, any mixture of kinds and bits in one block."""
    streams = [StreamSpec(f"s{i}", *kind, tuple(shape)) for i, (kind, shape, _, _) in enumerate(block)]
    values = [any_values(*kind, tuple(shape), how, seed) for kind, shape, how, seed in block]
    round_trip(streams, values)


@pytest.mark.parametrize(("kind", "bits"), KINDS)
@pytest.mark.parametrize(
    "how", ["normal", *(pytest.param(how, marks=pytest.mark.slow) for how in HOW if how != "normal")]
)
def test_every_kind_round_trips_at_a_realistic_size(kind: str, bits: int, how: str) -> None:
    shapes = [(90, 20), (20, 90), (2, 200), (400,), (8, 8, 9), ()]
    streams = [StreamSpec(f"s{i}", kind, bits, shape) for i, shape in enumerate(shapes)]
    round_trip(streams, [any_values(kind, bits, s.shape, how, i) for i, s in enumerate(streams)])


@pytest.mark.parametrize("bits", STREAM_BITS["int"])
def test_largest_integers_round_trip(bits: int) -> None:
    limit = 2 ** (bits - 1) - 1
    for fill in (-limit, limit):
        round_trip([StreamSpec("s", "int", bits, (3, 5))], [np.full((3, 5), fill, dtype=np.int8)])
    with pytest.raises(ValueError, match="outside"):
        CODEC.encode([StreamSpec("s", "int", bits, (1,))], [np.array([-limit - 1], dtype=np.int8)])


@pytest.mark.parametrize("kind", ["bf16", "fp32"])
def test_extreme_floating_point_numbers_round_trip(kind: str) -> None:
    """Both zeros, both infinities, NaNs with any payload, the smallest and the largest."""
    bits = STREAM_BITS[kind][0]
    edge = np.array([0, 1, 2 ** (bits - 1) - 1, 2 ** (bits - 1), 2 ** (bits - 1) + 1, 2**bits - 1], dtype=np.uint64)
    round_trip([StreamSpec("s", kind, bits, (6,))], [edge.astype(DTYPES[kind])])


def embedding(R: int, C: int, seed: int = 0) -> torch.Tensor:
    """Rows with a few directions in common, as the rows of a trained embedding."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(4, C, generator=generator)
    return torch.randn(R, 4, generator=generator) @ shared + torch.randn(R, C, generator=generator)


@pytest.mark.parametrize(
    ("kind", "wide"),
    [
        ("int4", False),
        ("fp8", True),
        *(
            pytest.param(*c, marks=pytest.mark.slow)
            for c in [("int4", True), ("int6", False), ("int6", True), ("fp8", False)]
        ),
    ],
)
def test_predicted_lines_round_trip_and_save_bytes(kind: str, wide: bool) -> None:
    """The columns of a tall matrix, the rows of a wide one."""
    w = embedding(3000, 60).T.contiguous() if wide else embedding(3000, 60)
    if kind == "fp8":
        stream, array = StreamSpec("e/fp8", "fp8", 8, tuple(w.shape)), Fp8Quantizer().encode(w)["fp8"].numpy()
    else:
        bits = int(kind[3:])
        stream, array = StreamSpec("e/q", "int", bits, tuple(w.shape)), IntQuantizer(bits).encode(w)["q"].numpy()
    without = round_trip([stream], [array], WeightCodec(SearchSpace(prediction=False)))
    assert len(round_trip([stream], [array])) < 0.98 * len(without)


@pytest.mark.parametrize(
    ("max_coefficient", "max_value", "dtype"), [(100, 100, np.float32), (2**15 + 255, 2**18, np.float64)]
)
def test_predictions_are_exact_at_the_largest_sums(max_coefficient: int, max_value: int, dtype: Any) -> None:
    """The largest coefficients and values of a valid file, and the largest that single precision allows."""
    L, N = 1024, 3000
    assert panel_lines(L, N) == 21
    assert panel_lines(60, N) == 1
    assert is_predictable(L, N)
    assert not is_predictable(L + 1, N)
    assert not is_predictable(1, N)
    random = np.random.default_rng(0)
    coefficients = random.integers(-max_coefficient, max_coefficient + 1, (L, L)) * earlier_lines(L, N)
    coefficients[-1, : L // 2] = max_coefficient
    lines = random.integers(-max_value, max_value + 1, (L, N))
    lines[: L // 2, 0] = max_value
    prediction = PanelPrediction(LinearPredictor(5, coefficients), N, max_value)
    assert prediction._known_LN.dtype == dtype
    for start in range(0, L, panel_lines(L, N)):
        part = slice(start, min(L, start + panel_lines(L, N)))
        found = prediction.predict(part)
        if start in (0, 21, 42) or part.stop == L:
            for i in (0, 1, N - 1):
                for j in (part.start, part.stop - 1):
                    known = sum(int(coefficients[j, k]) * int(lines[k, i]) for k in range(start))
                    assert int(found[j - start, i]) == known
        prediction.update(part, lines[part])


@pytest.mark.parametrize(
    "how", ["normal", *(pytest.param(how, marks=pytest.mark.slow) for how in HOW if how != "normal")]
)
def test_an_independent_decoder_reads_every_kind(how: str) -> None:
    """Every kind and number of bits, with a decoder written from the specification that shares no code."""
    streams = [StreamSpec(f"s{i}", kind, bits, (23, 11)) for i, (kind, bits) in enumerate(KINDS)]
    streams += [
        StreamSpec("few", "bf16", 16, (2, 50)),
        StreamSpec("again", "int", 4, (9, 30)),
        StreamSpec("one", "fp8", 8, (1,)),
    ]
    streams = [StreamSpec(s.name, s.kind, s.bits, (s.size,)) if s.kind == "u8" else s for s in streams]
    values = [any_values(s.kind, s.bits, s.shape, how, i) for i, s in enumerate(streams)]
    data = round_trip(streams, values)
    assert read(streams, data) == [array.reshape(-1).tolist() for array in values]


def test_an_independent_decoder_reads_predicted_lines() -> None:
    w = embedding(1200, 60)
    streams = [StreamSpec("e/fp8", "fp8", 8, (1200, 60)), StreamSpec("w/q", "int", 4, (60, 1200))]
    values = [Fp8Quantizer().encode(w)["fp8"].numpy(), IntQuantizer(4).encode(w.T)["q"].numpy()]
    data = round_trip(streams, values)
    assert len(data) < len(round_trip(streams, values, WeightCodec(SearchSpace(prediction=False))))
    assert read(streams, data) == [array.reshape(-1).tolist() for array in values]


def test_blocks_of_earlier_versions_are_still_read() -> None:
    """A block from the first version of the format. Never change it: users have such files."""
    data = bytes.fromhex((Path(__file__).parent / "files/ans-block.hex").read_text())
    i = np.arange(160)
    expected = [
        ((i * i * 7 + i) % 15 - 7).astype(np.int8).reshape(8, 20),
        ((i * 37) % 256).astype(np.uint8).reshape(40, 4),
        (0x3F80 + (i * 11) % 23).astype("<u2"),
        (0x3F800000 + i[:5] * 12345).astype("<u4"),
        (97 + i % 26).astype(np.uint8),
    ]
    streams = [
        StreamSpec("a", "int", 4, (8, 20)),
        StreamSpec("b", "fp8", 8, (40, 4)),
        StreamSpec("c", "bf16", 16, (160,)),
        StreamSpec("d", "fp32", 32, (5,)),
        StreamSpec("e", "u8", 8, (160,)),
    ]
    for array, again in zip(expected, CODEC.decode(streams, data), strict=True):
        assert (array == again).all()


def trained(R: int, C: int, seed: int) -> torch.Tensor:
    """A matrix whose rows and columns differ in scale, as after training (docs/results/weight-codec.md)."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.randn(R, 1, generator=generator), torch.randn(1, C, generator=generator)
    return torch.randn(R, C, generator=generator) * (0.15 * rows + 0.2 * columns).exp()


@pytest.mark.parametrize("bits", [4, 5])
def test_weights_take_less_than_their_entropy_and_every_general_compressor(bits: int) -> None:
    values = [IntQuantizer(bits).encode(trained(320, 320, seed))["q"].numpy() for seed in range(2)]
    streams = [StreamSpec(f"{i}/q", "int", bits, array.shape) for i, array in enumerate(values)]
    sizes = {name: len(data) for name, data in encode_all(streams, values).items()}
    pooled = np.concatenate([array.reshape(-1) for array in values])
    bound = entropy(np.unique(pooled, return_counts=True)[1]) * pooled.size / 8
    ours = sizes.pop("ans/2")
    assert ours < bound
    assert ours < 0.985 * min(sizes.values())


@pytest.mark.parametrize("bits", [4, 8])
def test_independent_values_cost_at_most_half_a_percent_more_than_their_entropy(bits: int) -> None:
    """Identically distributed: no model can take less than the entropy."""
    random = np.random.default_rng(0)
    if bits == 4:
        array = np.rint(random.normal(0, 2.2, (512, 512))).clip(-7, 7).astype(np.int8)
    else:
        array = Fp8Quantizer(scaled=False).encode(torch.from_numpy(random.normal(0, 100, (512, 512))))["fp8"].numpy()
    bound = entropy(np.unique(array, return_counts=True)[1]) * array.size / 8
    data = round_trip([StreamSpec("a", "int" if bits == 4 else "fp8", bits, array.shape)], [array])
    assert bound < len(data) < 1.005 * bound


def test_all_zero_weights_cost_nearly_nothing() -> None:
    """A projection that starts at zero, before training."""
    streams = [StreamSpec(f"{i}/q", "int", 4, (640, 640)) for i in range(3)]
    assert len(round_trip(streams, [np.zeros((640, 640), dtype=np.int8)] * 3)) < 100


def test_the_search_space_limits_the_encoder_only() -> None:
    array = IntQuantizer(4).encode(trained(300, 200, 0))["q"].numpy()
    stream = StreamSpec("w/q", "int", 4, array.shape)
    sizes = [
        len(round_trip([stream], [array], WeightCodec(SearchSpace(rows, columns, prediction=False))))
        for rows, columns in (((OFF,), (OFF,)), ((1,), (OFF,)), ((OFF,), (1,)), ((1,), (1,)), ((0, 1, 2, OFF),) * 2)
    ]
    assert sizes[0] > sizes[1] > sizes[3] >= sizes[4]
    assert sizes[0] > sizes[2] > sizes[3]


@given(st.lists(st.integers(1, 2**29), min_size=1, max_size=256))
def test_frequencies_are_exact(weights: list[int]) -> None:
    found = frequencies(np.array(weights, dtype=np.int64))
    size, total = len(weights), sum(weights)
    starts = [s + sum(weights[:s]) * (2**24 - size) // total for s in range(size + 1)]
    assert found.tolist() == [b - a for a, b in pairwise(starts)]
    assert found.min() >= 1
    assert found.sum() == 2**24


@given(st.integers(1, 64), st.data())
def test_numbers_round_trip(bits: int, data: st.DataObject) -> None:
    encoder = AnsEncoder()
    number = data.draw(st.integers(0, 2**bits - 1))
    code_number(encoder, bits, number)
    decoder = AnsDecoder(encoder.finish())
    assert code_number(decoder, bits, 0) == number
    decoder.finish()


@given(st.lists(st.integers(-40, 100), max_size=300))
@settings(deadline=None)
def test_integers_round_trip(numbers: list[int]) -> None:
    encoder, array = AnsEncoder(), np.array(numbers, dtype=np.int64)
    code_integers(encoder, len(numbers), array, 8)
    decoder = AnsDecoder(encoder.finish())
    assert code_integers(decoder, len(numbers), None, 8).tolist() == numbers
    decoder.finish()


def test_the_estimated_cost_of_a_histogram_is_near_its_actual_cost() -> None:
    random = np.random.default_rng(0)
    contexts = random.integers(0, 5, 20_000).astype(np.uint16)
    symbols = (random.integers(0, 4, 20_000) * (1 + contexts) // 2).astype(np.uint8)
    histograms, encoder = Histograms(5, 16), AnsEncoder()
    found = np.zeros((5, 16), dtype=np.int64)
    np.add.at(found, (contexts, symbols), 1)
    estimate = histograms.cost(found)
    histograms.code(encoder, contexts, symbols)
    assert abs(8 * len(encoder.finish()) / estimate - 1) < 0.01


def record_encoders(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that receives the name of each codec that encodes a block."""
    used: list[str] = []

    def watched(name: str, encode: Callable[..., bytes]) -> Callable[..., bytes]:
        def watch(*args: Any) -> bytes:
            used.append(name)
            return encode(*args)

        return watch

    for name, codec in CODECS.items():
        fake = type("Watched", (), {"name": name, "encode": staticmethod(watched(name, codec.encode))})
        monkeypatch.setitem(CODECS, name, fake())
    return used


def large(copies: int) -> tuple[list[StreamSpec], list[Values]]:
    """A block above the size up to which every codec is tried. `copies` of its 4 matrices are equal."""
    arrays = [IntQuantizer(4).encode(trained(512, 320, min(seed, 4 - copies)))["q"].numpy() for seed in range(4)]
    return [StreamSpec(f"{i}/q", "int", 4, array.shape) for i, array in enumerate(arrays)], arrays


def test_slow_compressors_are_not_tried_where_they_cannot_win(monkeypatch: pytest.MonkeyPatch) -> None:
    streams, values = large(copies=1)
    found = encode_all(streams, values)
    best = min(found, key=lambda name: len(found[name]))
    used = record_encoders(monkeypatch)
    assert encode_smallest(streams, values) == (best, found[best])
    assert set(used) == {"ans/2"}
    assert best == "ans/2"


def test_slow_compressors_are_tried_where_they_can_win() -> None:
    """Repeated matrices, which an entropy coder does not recognize but the quick pass does."""
    streams, values = large(copies=4)
    name, data = encode_smallest(streams, values)
    assert name.split("/")[0] in ("lzma", "brotli")
    assert (name, len(data)) == min(
        ((name, len(data)) for name, data in encode_all(streams, values).items()), key=lambda pair: pair[1]
    )


def test_an_artifact_uses_the_weight_codec(tmp_path: Path) -> None:
    run = Run(
        data=Data(tokenizer="bytes", seq_len=8),
        model=Model(
            vocab_size=256, embed_dim=64, d_model=64, n_layer=2, d_state=16, headdim=16, mlp_mult=2.0, chunk_size=8
        ),
        train=Train(steps=1, tokens_per_step=8, tokens_per_micro=8),
    )
    torch.manual_seed(0)
    model = LanguageModel(run.model, run.quant)
    save_artifact(tmp_path / "a.jepa", model, run, ByteTokenizer())
    rows = {row["kind"]: row["codec"] for row in inspect(tmp_path / "a.jepa")["blocks"]}
    assert rows["int"] == rows["fp8"] == "ans/2"
    tokens = torch.arange(16).reshape(1, 16)
    with torch.no_grad():
        found, _ = load_artifact(tmp_path / "a.jepa").model(tokens, None)
        live, _ = model.eval()(tokens, None)
    assert torch.equal(found, live)
