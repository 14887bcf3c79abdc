"""Mutations: of bytes, protobuf messages and JSON values. The random numbers that each takes repeat it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any

EDGES = sorted({sign * ((1 << bits) + off) for bits in (0, 1, 4, 7, 8, 15, 16, 24, 31, 32, 53, 62, 63, 64)
                for off in (-1, 0, 1) for sign in (1, -1)})  # fmt: skip
"""Integers at which formats break."""

_VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 1.0, 0.5, -0.0, 1e308, 1e-320, "", "a", "a" * 3000, "\0", "\ud800", "../../x", "é\n",
    [], {}, [None], [[]] * 50, {"a": {"a": {"a": 1}}}, "__import__('os').system('true')", "nan", "9" * 400,
]  # fmt: skip


def edge(random: Random, bits: int) -> int:
    """An integer of `bits` bits, more often than not a dangerous one."""
    value = random.choice(EDGES) if random.random() < 0.7 else random.getrandbits(bits)
    return value % (1 << bits)


def mutate_bytes(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """`data` after one to four changes; `others` are there to splice from."""
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        data = random.choice(_BYTES)(random, data, random.choice(others))
    return data


def _place(random: Random, data: bytes) -> tuple[int, int]:
    """Start and end of a stretch of `data`, short more often than long."""
    start = random.randrange(len(data) + 1)
    return start, min(len(data), start + (1 << random.randrange(1 + len(data).bit_length())))


def _flip_bit(random: Random, data: bytes, other: bytes) -> bytes:
    if not data:
        return data
    at = random.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << random.randrange(8)]) + data[at + 1 :]


def _set_integer(random: Random, data: bytes, other: bytes) -> bytes:
    width = random.choice((1, 2, 4, 8))
    at = random.randrange(max(1, len(data) - width + 1))
    return data[:at] + edge(random, 8 * width).to_bytes(width, "little") + data[at + width :]


def _add_to_integer(random: Random, data: bytes, other: bytes) -> bytes:
    width = random.choice((1, 2, 4, 8))
    at = random.randrange(max(1, len(data) - width + 1))
    value = int.from_bytes(data[at : at + width], "little") + random.choice((-16, -1, 1, 4, 256))
    return data[:at] + (value % (1 << 8 * width)).to_bytes(width, "little") + data[at + width :]


def _truncate(random: Random, data: bytes, other: bytes) -> bytes:
    return data[: random.randrange(len(data) + 1)]


def _drop(random: Random, data: bytes, other: bytes) -> bytes:
    start, end = _place(random, data)
    return data[:start] + data[end:]


def _repeat(random: Random, data: bytes, other: bytes) -> bytes:
    start, end = _place(random, data)
    return data[:end] + data[start:end] * random.choice((1, 1, 2, 8)) + data[end:]


def _insert(random: Random, data: bytes, other: bytes) -> bytes:
    at = random.randrange(len(data) + 1)
    return data[:at] + random.randbytes(1 << random.randrange(8)) + data[at:]


def _fill(random: Random, data: bytes, other: bytes) -> bytes:
    start, end = _place(random, data)
    return data[:start] + bytes([random.choice((0, 0x7F, 0x80, 0xFF))]) * (end - start) + data[end:]


def _scramble(random: Random, data: bytes, other: bytes) -> bytes:
    start, end = _place(random, data)
    return data[:start] + random.randbytes(end - start) + data[end:]


def _splice(random: Random, data: bytes, other: bytes) -> bytes:
    start, end = _place(random, data)
    from_, to = _place(random, other)
    return data[:start] + other[from_:to] + data[end:]


def _grow(random: Random, data: bytes, other: bytes) -> bytes:
    return data + bytes(1 << random.randrange(18))


_BYTES: list[Callable[[Random, bytes, bytes], bytes]] = [
    _flip_bit, _flip_bit, _set_integer, _add_to_integer, _truncate, _drop, _repeat, _insert, _fill, _scramble, _splice,
    _grow,
]  # fmt: skip


def mutate_fields(random: Random, message: bytes, others: Sequence[bytes]) -> bytes:
    """A protobuf message after a change of one field: of its bytes, of a field in it, dropped, doubled, or moved."""
    fields = list(_fields(message))
    if not fields:
        return mutate_bytes(random, message, others)
    at, way = random.randrange(len(fields)), random.random()
    tag, value = fields[at]
    if way < 0.7:
        change = mutate_fields if way < 0.3 and tag & 7 == 2 else mutate_bytes
        value = change(random, value, others)
        fields[at] = tag, value if tag & 7 == 2 else value[:8].ljust({1: 8, 5: 4}.get(tag & 7, 1), b"\1")
    elif way < 0.8:
        del fields[at]
    else:
        fields.insert(random.randrange(len(fields)), fields[at])
    return b"".join(_varint(tag) + (_varint(len(value)) if tag & 7 == 2 else b"") + value for tag, value in fields)


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """(tag, value) of a protobuf message as far as it is one; varints as the bytes they are."""
    at = 0
    while at < len(message):
        tag, at = _read_varint(message, at)
        start = at
        if tag & 7 == 2:
            size, start = _read_varint(message, at)
            at = start + size
        else:
            at = _read_varint(message, at)[1] if tag & 7 == 0 else at + {1: 8, 5: 4}.get(tag & 7, 1)
        yield tag, message[start:at]


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    """The integer at `at`, and where the next thing starts."""
    value, end = 0, at
    while end < len(message):
        value |= (message[end] & 127) << 7 * (end - at)
        end += 1
        if message[end - 1] < 128:
            break
    return value, end


def _varint(value: int) -> bytes:
    return bytes([value & 127 | 128]) + _varint(value >> 7) if value > 127 else bytes([value])


def mutate_json(random: Random, value: Any) -> Any:
    """A copy of a JSON value after one to three changes anywhere in it."""
    value = copy.deepcopy(value)
    for _ in range(random.choice((1, 1, 2, 3))):
        holders = list(_holders(value))
        if not holders:
            return random.choice(_VALUES)
        holder = random.choice(holders)
        key = random.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        random.choice(_EDITS)(random, holder, key, holders)
    return value


def _holders(value: Any) -> Any:
    """Every object and list in `value` that has something in it."""
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if children:
        yield value
    for child in children:
        yield from _holders(child)


def _replace(random: Random, holder: Any, key: Any, holders: list[Any]) -> None:
    holder[key] = copy.deepcopy(random.choice(_VALUES))


def _edge(random: Random, holder: Any, key: Any, holders: list[Any]) -> None:
    holder[key] = random.choice(EDGES)


def _near(random: Random, holder: Any, key: Any, holders: list[Any]) -> None:
    """A value of the same type, not far away."""
    old = holder[key]
    if isinstance(old, bool):
        holder[key] = not old
    elif isinstance(old, int | float):
        holder[key] = random.choice((old + 1, old - 1, old * 2, -old, old // 2, old * 1000, float(old)))
    elif isinstance(old, str):
        at = random.randrange(len(old) + 1)
        holder[key] = old[:at] + random.choice(("", "/", "0", "é", "\0", old)) + old[at + random.randrange(2) :]
    elif isinstance(old, list):
        random.choice((old.reverse, old.clear, lambda: random.shuffle(old), lambda: old.extend(old[:100])))()
    elif isinstance(old, dict):
        old[random.choice(("extra", "unheard_of", "new\nline", "x" * 5000))] = copy.deepcopy(random.choice(_VALUES))


def _remove(random: Random, holder: Any, key: Any, holders: list[Any]) -> None:
    del holder[key]


def _double(random: Random, holder: Any, key: Any, holders: list[Any]) -> None:
    if isinstance(holder, list):
        holder.insert(key, copy.deepcopy(holder[key]))
    else:
        holder[f"{key}2"] = copy.deepcopy(holder[key])


def _swap(random: Random, holder: Any, key: Any, holders: list[Any]) -> None:
    """Exchange with a value from elsewhere (a copy: no value may come to hold itself)."""
    other = random.choice(holders)
    there = random.choice(list(other) if isinstance(other, dict) else range(len(other)))
    one, two = copy.deepcopy(holder[key]), copy.deepcopy(other[there])
    other[there] = one
    holder[key] = two


_EDITS: list[Callable[[Random, Any, Any, list[Any]], None]] = [
    _replace,
    _edge,
    _near,
    _near,
    _near,
    _remove,
    _double,
    _swap,
]
