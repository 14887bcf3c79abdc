"""The weight codec on an artifact: its size beside the general compressors', what was tried, and how long it takes.

    python bench/codec.py ARTIFACT [--quick] [--times] [--jobs N]

Two tables in Markdown, three lines, and last one JSON line. Sizes are bytes of the artifact's blocks; "pooled entropy"
is the order-0 entropy of all values of a block thrown together, for which no model is counted. The general compressors
at their highest levels take minutes on 33 million parameters; `--quick` leaves them out. Sizes are found in N
processes. Times are of one core, before the processes start; `--times` prints nothing else.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from jepamba.artifact.ans import WeightCodec
from jepamba.artifact.ans.histograms import Histograms, integers_cost
from jepamba.artifact.ans.levels import LEVELS, OFF, Levels
from jepamba.artifact.ans.ordinals import linear_values, low_bits, matrix_shape, max_magnitude, to_ordinals
from jepamba.artifact.ans.parameter_search import SearchSpace, search_parameters, statistics
from jepamba.artifact.ans.weights import HistogramSets
from jepamba.artifact.codecs import CODECS, quick_bytes
from jepamba.artifact.store import open_artifact
from jepamba.artifact.streams import StreamSpec, Values
from jepamba.quant.entropy import entropy

Block = list[tuple[StreamSpec, Values]]

GENERAL = ("brotli", "lzma")
EVERY = (0, 1, 2, OFF)
NONE = (OFF,)

BLOCKS: list[Block] = []
SCALES: dict[str, Values] = {}


def prepare(path: Path) -> None:
    """Open the artifact, in this process: its blocks of weights and vectors, and its scales by name."""
    torch.set_num_threads(1)
    opened = open_artifact(path)
    BLOCKS.extend(
        [(stream, opened.streams[stream.name]) for stream in block.streams]
        for block in opened.container.blocks
        if block.streams[0].kind != "u8"
    )
    SCALES.update((name, array) for name, array in opened.streams.items() if name.endswith("/scale"))


def title(block: Block) -> str:
    stream = block[0][0]
    kind = f"int{stream.bits}" if stream.kind == "int" else stream.kind
    return f"{kind} {stream.name.rpartition('/')[2]}"


def pooled(block: Block) -> float:
    """Bytes of the order-0 entropy of all values of the block together."""
    values = np.concatenate([array.reshape(-1) for _, array in block])
    return entropy(np.unique(values, return_counts=True)[1]) * values.size / 8


def encoded(block: Block, codec: WeightCodec | None = None) -> int:
    return len((codec or WeightCodec()).encode([stream for stream, _ in block], [array for _, array in block]))


def cells(*row: object) -> None:
    print("| " + " | ".join(f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row) + " |")


def under_codec(block: Block, codec: str) -> int:
    streams, values = [stream for stream, _ in block], [array for _, array in block]
    if codec == "quick zstd":
        return quick_bytes(streams, values)
    return len(CODECS[codec].encode(streams, values))


def static(block: Block) -> float:
    """A histogram for each tensor, written out in 12 bits a symbol."""
    bits = 0.0
    for _, array in block:
        counts = np.unique(array, return_counts=True)[1]
        bits += entropy(counts) * array.size + 12 * counts.size
    return bits / 8


def under(block: Block, context: Callable[[StreamSpec, Levels, Block], tuple[NDArray[np.int64], float]]) -> float:
    """Bytes under shared adaptive histograms in contexts (R, C) that `context` gives, with the bits that they cost.

    Low bits of wide ordinals are counted as the codec codes them.
    """
    stream = block[0][0]
    by_level, _, by_coarse = HistogramSets(SearchSpace()).of(stream)
    bits = 0.0
    for stream, array in block:
        ordinals_RC = to_ordinals(stream, array).reshape(matrix_shape(stream))
        space = SearchSpace((0,), (0,), False)
        finest, _ = search_parameters(space, statistics(space, stream, ordinals_RC), by_level, by_level)
        context_RC, side = context(stream, finest, [(stream, array)])
        bits += side + learn(by_level, np.clip(context_RC, 0, LEVELS - 1), ordinals_RC >> low_bits(stream))
        if low_bits(stream):
            bits += learn(by_coarse, ordinals_RC >> low_bits(stream), ordinals_RC & (1 << low_bits(stream)) - 1)
    return bits / 8


def learn(histograms: Histograms, contexts: NDArray[np.int64], symbols: NDArray[np.int64]) -> float:
    """Bits of `symbols` in `contexts`, which the histograms learn."""
    shape = histograms.counts.shape
    cell = contexts.astype(np.int64) * shape[1] + symbols
    found = np.bincount(cell.reshape(-1), minlength=shape[0] * shape[1]).reshape(shape)
    bits = histograms.cost(found)
    histograms.counts += 4 * found
    return bits


def by_scale(scales: dict[str, Values]) -> Callable[[StreamSpec, Levels, Block], tuple[NDArray[np.int64], float]]:
    """Row classes from the row's stored scale: free. Rows with equal distributions differ in their scale only."""

    def context(stream: StreamSpec, finest: Levels, _: Block) -> tuple[NDArray[np.int64], float]:
        scale = scales.get(stream.name.rpartition("/")[0] + "/scale")
        rows = np.zeros(len(finest.rows_R), dtype=np.int64)
        if scale is not None and scale.size == rows.size:
            s = torch.from_numpy(scale.reshape(-1).view(np.int16).copy()).view(torch.bfloat16).double().numpy()
            s = np.maximum(s, 1e-30)
            rows = np.rint(-8 * np.log2(s / np.exp(np.log(s).mean()))).astype(np.int64)
        halves = np.rint(finest.columns_C / 2).astype(np.int64)
        return finest.base + rows[:, None] + 2 * halves[None], integers_cost(halves, 8)

    return context


def beside_the_left(stream: StreamSpec, finest: Levels, block: Block) -> tuple[NDArray[np.int64], float]:
    """Levels in halves, and beside each the size of the left neighbour, in quarters of the largest value."""
    magnitude_RC = np.abs(linear_values(stream)[to_ordinals(*block[0])].reshape(matrix_shape(stream)))
    quarter_RC = np.roll(4 * magnitude_RC // (max_magnitude(stream) + 1), 1, axis=1).clip(0, 3)
    rows, columns = (np.rint(classes / 4).astype(np.int64) for classes in (finest.rows_R, finest.columns_C))
    level_RC = np.clip(finest.base // 4 + rows[:, None] + columns[None], 0, LEVELS // 4 - 1)
    return 4 * level_RC + quarter_RC, integers_cost(rows, 8) + integers_cost(columns, 8)


def in_parts(parts: int) -> Callable[[StreamSpec, Levels, Block], tuple[NDArray[np.int64], float]]:
    """Row classes in quarters, column classes in quarters, anew for each of `parts` parts of the rows."""

    def context(stream: StreamSpec, finest: Levels, block: Block) -> tuple[NDArray[np.int64], float]:
        magnitude_RC = np.abs(linear_values(stream)[to_ordinals(*block[0])].astype(np.float64))
        magnitude_RC = magnitude_RC.reshape(matrix_shape(stream))
        quarters = np.rint(finest.rows_R / 2).astype(np.int64)
        expected_R1 = 2.0 ** ((finest.base - 120 + 2 * quarters[:, None]) / 8) * max_magnitude(stream)
        bits, levels = integers_cost(quarters, 8), []
        for rows in np.array_split(np.arange(len(quarters)), min(parts, len(quarters))):
            ratio_C = (magnitude_RC[rows] / expected_R1[rows]).mean(0)
            columns = np.rint(4 * np.log2(np.clip(ratio_C, 2.0**-15, 1.8))).astype(np.int64)
            bits += integers_cost(columns, 8)
            levels.append(finest.base + 2 * quarters[rows, None] + 2 * columns[None])
        return np.concatenate(levels), bits

    return context


def parametric(block: Block, tail: Callable[[NDArray[np.float64]], NDArray[np.float64]], unit: float) -> float:
    """Levels as in the codec, but for each level a distribution of a given form instead of a histogram.

    `tail` is the distribution function of the form at unit spread; its mean magnitude is 1 / `unit`.
    """
    bits = 0.0
    for stream, array in block:
        ordinals_RC = to_ordinals(stream, array).reshape(matrix_shape(stream))
        by_level, _, _ = HistogramSets(SearchSpace()).of(stream)
        space = SearchSpace(EVERY, EVERY, False)
        levels, _ = search_parameters(space, statistics(space, stream, ordinals_RC), by_level, by_level)
        level_RC = levels.of_rows(0, len(ordinals_RC)).astype(np.int64)
        numbers = linear_values(stream)
        edges = np.concatenate(([-np.inf], (numbers[1:] + numbers[:-1]) / 2, [np.inf]))
        found = np.zeros((LEVELS, numbers.size))
        np.add.at(found, (level_RC, ordinals_RC), 1)
        expected = 2.0 ** ((np.arange(LEVELS) - 120) / 8) * max_magnitude(stream)
        p = np.diff(tail(edges[None] / (expected[:, None] * unit)), axis=1)
        bits += levels.cost - float((found * np.log2(np.maximum(p, 2.0**-24))).sum())
    return bits / 8


def gaussian(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(torch.special.ndtr(torch.from_numpy(x)).numpy())


def laplace(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(x < 0, np.exp(np.minimum(x, 0)) / 2, 1 - np.exp(-np.maximum(x, 0)) / 2)


PLAIN = WeightCodec(SearchSpace(NONE, NONE, False))
LEVELS_ONLY = WeightCodec(SearchSpace(EVERY, EVERY, False))
TRIED: dict[str, Callable[[Block], float]] = {
    "pooled entropy": pooled,
    "static histogram per tensor, stored": static,
    "learning histogram per tensor": lambda block: sum(encoded([one], PLAIN) for one in block),
    "learning histogram, shared": lambda block: encoded(block, PLAIN),
    "row classes": lambda block: encoded(block, WeightCodec(SearchSpace(EVERY, NONE, False))),
    "column classes": lambda block: encoded(block, WeightCodec(SearchSpace(NONE, EVERY, False))),
    "row and column classes": lambda block: encoded(block, LEVELS_ONLY),
    "… in eighths only": lambda block: encoded(block, WeightCodec(SearchSpace((0,), (0,), False))),
    "… in quarters only": lambda block: encoded(block, WeightCodec(SearchSpace((1,), (1,), False))),
    "… in halves only": lambda block: encoded(block, WeightCodec(SearchSpace((2,), (2,), False))),
    "… histograms not shared": lambda block: sum(encoded([one], LEVELS_ONLY) for one in block),
    "… rows from their scales, free": lambda block: under(block, by_scale(SCALES)),
    "… in halves, beside the left neighbour's size": lambda block: under(block, beside_the_left),
    "… columns anew for 2 parts of the rows": lambda block: under(block, in_parts(2)),
    "… columns anew for 4 parts of the rows": lambda block: under(block, in_parts(4)),
    "… Gaussian instead of histograms": lambda block: parametric(block, gaussian, (np.pi / 2) ** 0.5),
    "… Laplace instead of histograms": lambda block: parametric(block, laplace, 1.0),
    "row and column classes, predicted lines": encoded,
}
"""What was tried on blocks of weights, in bytes."""


def size_of(block: int, way: str) -> float:
    """Bytes of a block one way: a name of `TRIED` or of a codec."""
    return TRIED[way](BLOCKS[block]) if way in TRIED else under_codec(BLOCKS[block], way)


def times() -> dict[str, float]:
    """Seconds of the processor to encode and to decode all blocks."""
    seconds = {"encode": 0.0, "decode": 0.0}
    for block in BLOCKS:
        streams = [stream for stream, _ in block]
        start = time.process_time()
        data = WeightCodec().encode(streams, [array for _, array in block])
        middle = time.process_time()
        values = WeightCodec().decode(streams, data)
        seconds["encode"] += middle - start
        seconds["decode"] += time.process_time() - middle
        assert all((a == b).all() for a, (_, b) in zip(values, block, strict=True))
    return seconds


def ways(block: Block, quick: bool) -> Iterator[str]:
    """In which ways the size of a block is found, the slowest first."""
    if not quick:
        same = all(stream.bits == 8 for stream, _ in block)
        general = [
            name for name in CODECS if name.partition("/")[0] in GENERAL and not (same and name.endswith("/bytes"))
        ]
        yield from sorted(general)
    yield from ("quick zstd", WeightCodec.name)
    yield from TRIED if block[0][0].kind in ("int", "fp8") else ("pooled entropy",)


def tables(found: list[dict[str, float]], quick: bool) -> dict[str, object]:
    """Print them; what the JSON line says of them."""
    columns = ("packed", "pooled entropy", "ans", *(("quick zstd",) if quick else GENERAL))
    cells("block", "values", *columns)
    cells(*["---"] * (len(columns) + 2))
    total = dict.fromkeys(columns, 0)
    for block, by_way in zip(BLOCKS, found, strict=True):
        sizes = {
            "packed": sum(stream.packed_bytes for stream, _ in block),
            **{name: round(min(v for way, v in by_way.items() if way.startswith(name))) for name in columns[1:]},
        }
        cells(title(block), sum(stream.size for stream, _ in block), *sizes.values())
        total = {name: total[name] + size for name, size in sizes.items()}
    cells("all", sum(stream.size for block in BLOCKS for stream, _ in block), *total.values())
    print(f"\nans against the best of the others: {total['ans'] / min(total[name] for name in columns[3:]) - 1:+.2%}")
    print(f"ans against the pooled entropy: {total['ans'] / total['pooled entropy'] - 1:+.2%}\n")

    weights = [i for i, by_way in enumerate(found) if all(name in by_way for name in TRIED)]
    cells("model", *[title(BLOCKS[i]) for i in weights], "all")
    cells(*["---"] * (len(weights) + 2))
    for name in TRIED:
        row = [round(found[i][name]) for i in weights]
        cells(name, *row, sum(row))
    return {"total": total, "blocks": {title(block): by_way for block, by_way in zip(BLOCKS, found, strict=True)}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--quick", action="store_true", help="without lzma and brotli at their highest levels")
    parser.add_argument("--times", action="store_true", help="encoding and decoding time only")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (default: cores)")
    args = parser.parse_args()
    prepare(args.artifact)
    seconds = times()
    count = sum(stream.size for block in BLOCKS for stream, _ in block)
    print(f"{count:,} values: encoded in {seconds['encode']:.2f} s, decoded in {seconds['decode']:.2f} s of one core\n")
    result: dict[str, object] = {"values": count, "seconds": seconds}
    if not args.times:
        largest_first = sorted(range(len(BLOCKS)), key=lambda i: -sum(stream.packed_bytes for stream, _ in BLOCKS[i]))
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(args.jobs, mp_context=spawn, initializer=prepare, initargs=(args.artifact,)) as pool:
            started: dict[tuple[int, str], Future[float]] = {
                (i, way): pool.submit(size_of, i, way) for i in largest_first for way in ways(BLOCKS[i], args.quick)
            }
            found = [{way: f.result() for (j, way), f in started.items() if i == j} for i in range(len(BLOCKS))]
        result |= tables(found, args.quick)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
