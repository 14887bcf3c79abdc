"""Tests of the loader: each window once per epoch, in a seeded order with an exactly restorable position."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from examples import examples
from jepamba.data import Batch, BatchLayout, Loader, Tokens
from jepamba.errors import UserError
from jepamba.text import ByteTokenizer, train_bpe

WIDE = train_bpe(["a wide vocabulary is of no use here, ids alone are"], 264)


class Counting(ByteTokenizer):
    """A byte tokenizer with a larger vocabulary, so that each position of a test stream has a unique token."""

    vocab_size = 65536


def positions(count: int) -> Tokens:
    """Return a stream in which the token at each position is the position plus one. BOS (0) does not occur."""
    return Tokens([np.arange(1, count + 1, dtype=np.uint16)], Counting())


def starts(batch: Batch) -> list[int]:
    return [int(row[0]) - 1 for row in batch.inputs_BT]


def equal(a: Batch, b: Batch) -> bool:
    return all(
        torch.equal(x, y)
        for x, y in ((a.inputs_BT, b.inputs_BT), (a.targets_BT, b.targets_BT), (a.reset_BT, b.reset_BT))
    )


@settings(max_examples=examples(80), deadline=None)
@given(st.integers(2, 400), st.integers(1, 20), st.integers(0, 5), st.booleans())
def test_every_window_of_an_epoch_once(length: int, seq_len: int, seed: int, shuffle: bool) -> None:
    if length < seq_len + 1:
        with pytest.raises(UserError, match="less than one window"):
            Loader(positions(length), seq_len, seed, shuffle)
        return
    loader = Loader(positions(length), seq_len, seed, shuffle)
    for epoch in range(3):
        assert loader.epoch_float == epoch
        seen = starts(loader.next(1))
        # The first window of an epoch decides its grid, and with it the number of its windows.
        count = loader.windows
        if count > 1:
            seen += starts(loader.next(count - 1))
        offset = min(seen)
        # One grid of adjoining windows: none twice, none missing, and no room left for another.
        assert sorted(seen) == list(range(offset, offset + count * seq_len, seq_len))
        assert offset < seq_len
        assert 0 <= length - 1 - (offset + count * seq_len) < seq_len
        assert shuffle or seen == list(range(0, count * seq_len, seq_len))
        assert loader.epoch_float == epoch + 1


def test_targets_are_the_inputs_shifted_by_one() -> None:
    batch = Loader(positions(1000), 16, 3).next(50)
    assert batch.inputs_BT.shape == batch.targets_BT.shape == batch.reset_BT.shape == (50, 16)
    assert batch.inputs_BT.dtype == batch.targets_BT.dtype == torch.int64
    assert batch.reset_BT.dtype == torch.bool
    assert torch.equal(batch.targets_BT, batch.inputs_BT + 1)
    assert torch.equal(batch.inputs_BT[:, 1:], batch.targets_BT[:, :-1])
    assert not batch.reset_BT.any()
    assert batch.inputs_BT.is_contiguous()
    assert batch.targets_BT.is_contiguous()


def test_windows_cross_shards() -> None:
    whole = np.arange(1, 101, dtype=np.uint16)
    tokens = Tokens([whole[:7], whole[7:8], whole[8:60], whole[60:]], Counting())
    for shuffle in (True, False):
        assert equal(Loader(tokens, 9, 1, shuffle).next(30), Loader(positions(100), 9, 1, shuffle).next(30))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.lists(st.integers(1, 30), min_size=1, max_size=6))
def test_batches_of_any_size_are_the_same_windows(first: list[int], then: list[int]) -> None:
    """Batches continue across epochs, and the batch size does not change the order."""
    loader, single = Loader(positions(150), 8, 7), Loader(positions(150), 8, 7)
    for count in first + then:
        batch = loader.next(count)
        assert starts(batch) == [start for _ in range(count) for start in starts(single.next(1))]


@settings(max_examples=examples(60), deadline=None)
@given(st.integers(0, 80), st.integers(1, 9), st.booleans())
def test_restored_loader_goes_on_alike(skip: int, count: int, shuffle: bool) -> None:
    loader = Loader(positions(150), 8, 7, shuffle)
    if skip:
        loader.next(skip)
    state = json.loads(json.dumps(loader.state()))
    expected = [loader.next(count) for _ in range(12)]
    other = Loader(positions(150), 8, 7, shuffle)
    other.next(5)
    other.restore(state)
    assert other.state() == state
    assert all(equal(batch, other.next(count)) for batch in expected)
    assert other.epoch_float == loader.epoch_float


def test_order_depends_on_seed_and_epoch_alone() -> None:
    def epoch(loader: Loader) -> list[int]:
        return starts(loader.next(loader.windows))

    assert epoch(Loader(positions(2000), 8, 1)) == epoch(Loader(positions(2000), 8, 1))
    assert epoch(Loader(positions(2000), 8, 1)) != epoch(Loader(positions(2000), 8, 2))
    loader = Loader(positions(2000), 8, 1)
    first = epoch(loader)
    loader.next(1)
    second = starts(loader.next(loader.windows - 1))
    # The grid moves: windows of another epoch are cut elsewhere.
    assert {start % 8 for start in first} != {start % 8 for start in second}
    offsets = set()
    for seed in range(60):
        offsets.add(starts(Loader(positions(2000), 8, seed).next(1))[0] % 8)
    assert offsets == set(range(8))


def test_resets_mark_where_documents_start() -> None:
    tokenizer = ByteTokenizer()
    stream = np.concatenate([np.append(np.uint16(0), tokenizer.encode(text)) for text in ("ab", "c", "defg")])
    tokens = Tokens([stream], tokenizer)
    batch = Loader(tokens, 9, 0, shuffle=False).next(1)
    assert batch.inputs_BT.tolist() == [[0, 97, 98, 0, 99, 0, 100, 101, 102]]
    assert batch.reset_BT.tolist() == [[i in (0, 3, 5) for i in range(9)]]
    assert not Loader(tokens, 9, 0, shuffle=False, reset=False).next(1).reset_BT.any()
    published = Tokens([stream], ByteTokenizer(separator=False))
    assert not Loader(published, 9, 0, shuffle=False).next(1).reset_BT.any()
    pieces = Tokens([np.array([1, 7, 8, 1, 9], dtype=np.uint16)], WIDE)
    assert Loader(pieces, 4, 0, shuffle=False).next(1).reset_BT.tolist() == [[True, False, False, True]]


@pytest.mark.parametrize(
    "change",
    [{"tokens": 151}, {"seq_len": 9}, {"seed": 8}, {"shuffle": 0}, {"epoch": -1}, {"position": -1}, {"position": 99}],
)
def test_positions_of_other_data_are_refused(change: dict[str, int]) -> None:
    loader = Loader(positions(150), 8, 7)
    loader.next(3)
    before = loader.state()
    with pytest.raises(UserError, match="position in the data"):
        loader.restore(before | change)
    with pytest.raises(UserError, match="damaged"):
        loader.restore({"epoch": 0})
    assert loader.state() == before
    other = Loader(positions(150), 8, 7)
    other.next(3)
    assert equal(loader.next(40), other.next(40))


@settings(max_examples=50, deadline=None)
@given(st.integers(20, 300), st.integers(1, 12), st.integers(1, 8), st.booleans(), st.data())
def test_some_rows_are_those_of_the_whole(
    length: int, most: int, ranks: int, shuffle: bool, data: st.DataObject
) -> None:
    """For every layout, the rows of all ranks are the windows of the step, each once, in the same order."""
    windows = data.draw(st.integers(ranks, 40))
    batch_layout = BatchLayout.of(windows, most, ranks)
    sizes = {len(batch_layout.rows(index, rank)) for index in range(batch_layout.passes) for rank in range(ranks)}
    assert max(sizes) <= max(most, 2)
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1
    whole, parts = (
        Loader(positions(length), 3, 5, shuffle),
        [Loader(positions(length), 3, 5, shuffle) for _ in range(ranks)],
    )
    for _ in range(3):
        batch = whole.next(windows)
        given = [part.next(windows, batch_layout.of_rank(rank)) for rank, part in enumerate(parts)]
        taken = [0] * ranks
        joined = []
        for index in range(batch_layout.passes):
            for rank, rows in enumerate(batch_layout.of_pass(index)):
                part = given[rank].part(taken[rank], taken[rank] + len(rows))
                joined.append(part)
                taken[rank] += len(rows)
        assert taken == [len(part.inputs_BT) for part in given]
        for name in ("inputs_BT", "targets_BT", "reset_BT"):
            assert torch.equal(torch.cat([getattr(part, name) for part in joined]), getattr(batch, name))
        assert all(part.state() == whole.state() for part in parts)


def test_layouts_of_one_and_many_ranks_and_too_many_ranks() -> None:
    assert [len(rows) for rows in BatchLayout.of(512, 64, 1).of_rank(0)] == [64] * 8
    assert [len(rows) for rows in BatchLayout.of(512, 64, 8).of_pass(0)] == [64] * 8
    assert BatchLayout.of(512, 64, 7).passes == 2
    with pytest.raises(UserError, match="9 processes, but a step has 8 windows"):
        BatchLayout.of(8, 2, 9)


def test_wrong_calls_are_refused() -> None:
    with pytest.raises(ValueError, match="windows of 0"):
        Loader(positions(150), 0, 7)
    with pytest.raises(ValueError, match="batch of 0"):
        Loader(positions(150), 8, 7).next(0)


HUNDRED_GIGABYTES = """
import resource, sys
from pathlib import Path
import numpy as np
from jepamba.data import Loader, Tokens, open_shard, write_shard
from jepamba.data.shards import HEADER_BYTES, SHARD_TOKENS
from jepamba.text import ByteTokenizer

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

shards = []
for index in range(500):
    file = Path(sys.argv[1]) / f"sparse_train_{index:06d}.bin"
    write_shard(file, np.full(9, 7))
    with file.open("r+b") as stream:
        stream.seek(8)
        stream.write(SHARD_TOKENS.to_bytes(4, "little"))
        stream.truncate(HEADER_BYTES + 2 * SHARD_TOKENS)
    assert file.stat().st_blocks * 512 < 1e6, "these files are not sparse"
before = peak()
shards = [open_shard(Path(sys.argv[1]) / f"sparse_train_{index:06d}.bin", 256) for index in range(500)]
loader = Loader(Tokens(shards, ByteTokenizer()), 1024, 0)
assert loader.windows >= 48_000_000
for _ in range(40):
    batch = loader.next(256)
    assert int(batch.inputs_BT.max()) <= 7
loader.restore(loader.state() | {"position": loader.windows - 3})
loader.next(6)
assert loader.state()["position"] == 3
print((peak() - before) // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="counts memory as Linux does")
def test_memory_does_not_grow_with_the_data(tmp_path: Path) -> None:
    """100 GB of shards as sparse files. A list of their windows would take 400 MB."""
    run = subprocess.run(
        [sys.executable, "-c", HUNDRED_GIGABYTES, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < 200
