"""An independent decoder of the codec `ans/2`, written from docs/artifact-format.md alone, with Python integers.

It is slow and checks only what the page requires. The tests use it as the reference for the encoder.
"""

from __future__ import annotations

import struct
from itertools import pairwise
from math import prod
from typing import Any

from jepamba.artifact.streams import StreamSpec

Table = dict[int, list[int]]


def read(streams: list[StreamSpec], data: bytes) -> list[list[int]]:
    """Return the bit patterns or integers of every stream, row by row."""
    return Decoder(data).block(streams)


class Decoder:
    def __init__(self, data: bytes) -> None:
        self.words = list(struct.unpack(f"<{len(data) // 4}I", data))
        self.x = self.words.pop()
        assert self.x
        if self.words:
            self.x = self.x << 32 | self.words.pop()
        self.shared: dict[Any, Table] = {}

    def symbol(self, f: list[int]) -> int:
        if len(f) == 1:
            return 0
        assert sum(f) == 1 << 24
        r, s, start = self.x % (1 << 24), 0, 0
        while start + f[s] <= r:
            start += f[s]
            s += 1
        self.x = (self.x >> 24) * f[s] + r - start
        if self.x < 1 << 32 and self.words:
            self.x = self.x << 32 | self.words.pop()
        return s

    def number(self, bits: int) -> int:
        result = 0
        for at in range(0, bits, 8):
            digit_bits = min(8, bits - at)
            result += self.symbol([1 << 24 - digit_bits] * (1 << digit_bits)) << at
        return result

    def adaptive(self, contexts: list[int], table: Table, alphabet: int) -> list[int]:
        waiting = {c: [i for i, other in enumerate(contexts) if other == c] for c in sorted(set(contexts))}
        out = [0] * len(contexts)
        while any(waiting.values()):
            for context, places in waiting.items():
                weights = table.setdefault(context, [1] * alphabet)
                run = places[: min(8192, max(4, (sum(weights) - alphabet) // 32))]
                starts = [s + sum(weights[:s]) * ((1 << 24) - alphabet) // sum(weights) for s in range(alphabet + 1)]
                f = [b - a for a, b in pairwise(starts)]
                for place in run:
                    out[place] = self.symbol(f)
                for place in run:
                    weights[out[place]] += 4
                del places[: len(run)]
        return out

    def integers(self, count: int, bits: int) -> list[int]:
        least = self.number(bits)
        if least >> bits - 1:
            least -= 1 << bits
        alphabet = self.number(8) + 1
        return [least + s for s in self.adaptive([0] * count, {}, alphabet)]

    def block(self, streams: list[StreamSpec]) -> list[list[int]]:
        out = [self.stream(stream) for stream in streams]
        assert self.number(16) == 0xE5D0
        assert self.x == 0
        assert not self.words
        return out

    def stream(self, stream: StreamSpec) -> list[int]:
        b, sign = stream.bits, 1 << stream.bits - 1
        R = stream.shape[0] if len(stream.shape) > 1 else 1
        C = prod(stream.shape) // R
        if stream.kind == "u8":
            return self.adaptive([0] * C, {}, 256)
        if stream.kind == "int":
            return [o - sign + 1 for o in self.weights(stream, R, C, 2 * sign - 2, range(1 - sign, sign), sign - 1)]
        if stream.kind == "fp8":
            size = [m if m < 8 else (8 + m % 8) * 2 ** (m // 8 - 1) for m in range(128)]
            ordinals = self.weights(stream, R, C, 255, [-v for v in size[::-1]] + size, 448 * 512)
        elif R <= 8:
            ordinals = [o for _ in range(R) for o in self.floats(C, b)]
        else:
            ordinals = self.floats(R * C, b)
        return [o - sign if o & sign else 2 * sign - 1 - o for o in ordinals]

    def floats(self, count: int, bits: int) -> list[int]:
        low = self.number(5)
        out = [o << low for o in self.integers(count, bits - low + 1)]
        for at in range(0, low, 8):
            digit_bits = min(8, low - at)
            out = [o + (self.symbol([1 << 24 - digit_bits] * (1 << digit_bits)) << at) for o in out]
        return out

    def weights(self, stream: StreamSpec, R: int, C: int, top: int, numbers: Any, largest: int) -> list[int]:
        L, N = min(R, C), max(R, C)
        J = max(1, min(L // 32, (1 << 16) // N))
        predicted = J < L <= 1024 and bool(self.number(1))
        base, p, q = self.number(7), self.number(2), self.number(2)
        r = self.integers(R, 8) if p < 3 else [0] * R
        c = self.integers(C, 8) if q < 3 else [0] * C
        level = [[max(0, min(127, base + (r[i] << p) + (c[j] << q))) for j in range(C)] for i in range(R)]
        if not predicted:
            out = []
            step = max(1, (1 << 20) // C)
            for start in range(0, R, step):
                out += self.split(stream, top, 0, [at for row in level[start : start + step] for at in row])
            return out
        t = self.number(4)
        coefficients = iter(self.integers(sum(j - j % J for j in range(L)), 16))
        b = [[next(coefficients) for _ in range(j - j % J)] for j in range(L)]
        u = largest << t
        lines: list[list[int]] = []
        for start in range(0, L, J):
            panel = range(start, min(L, start + J))
            m = [sum(b[j][k] * numbers[lines[k][i]] for k in range(start)) for j in panel for i in range(N)]
            at = [level[i][j] if R >= C else level[j][i] for j in panel for i in range(N)]
            size = [min(14, (28 * abs(e) + u) // (2 * u)) for e in m]
            coded = self.split(stream, top, 1, [128 * x + y for x, y in zip(size, at, strict=True)])
            flipped = [top - o if e < 0 else o for o, e in zip(coded, m, strict=True)]
            lines += [flipped[i * N : (i + 1) * N] for i in range(len(panel))]
        return [lines[j][i] if R >= C else lines[i][j] for i in range(R) for j in range(C)]

    def split(self, stream: StreamSpec, top: int, which: int, contexts: list[int]) -> list[int]:
        low = max(0, stream.bits - 6)
        tables = [self.shared.setdefault((stream.kind, stream.bits, i), {}) for i in range(3)]
        coarse = self.adaptive(contexts, tables[which], (top >> low) + 1)
        if not low:
            return coarse
        fine = self.adaptive(coarse, tables[2], 1 << low)
        return [(a << low) + b for a, b in zip(coarse, fine, strict=True)]
