"""Tests of the prefetcher: the same batches and positions as the loader, and errors at the right call."""

import numpy as np
import pytest
import torch

from jepamba.data import Loader, Prefetcher, Tokens
from jepamba.errors import UserError
from jepamba.text.tokenizers import ByteTokenizer


def tokens(count: int = 1000) -> Tokens:
    return Tokens([np.random.default_rng(0).integers(0, 256, count).astype(np.uint16)], ByteTokenizer())


def test_batches_and_positions_are_the_loaders() -> None:
    plain, ahead = Loader(tokens(), 16, 3), Prefetcher(Loader(tokens(), 16, 3))
    assert ahead.state() == plain.state()
    for count in (4, 4, 7, 7, 50, 4, 4):
        ours, truth = ahead.next(count), plain.next(count)
        assert torch.equal(ours.inputs_BT, truth.inputs_BT)
        assert torch.equal(ours.reset_BT, truth.reset_BT)
        assert ahead.state() == plain.state()
        assert ahead.epoch_float == plain.epoch_float


def test_a_restored_position_forgets_what_was_being_made() -> None:
    ahead = Prefetcher(Loader(tokens(), 16, 3))
    ahead.next(5)
    state = ahead.state()
    expected = [ahead.next(5).inputs_BT for _ in range(20)]
    ahead.restore(state)
    assert ahead.state() == state
    for truth in expected:
        assert torch.equal(ahead.next(5).inputs_BT, truth)
    fresh = Prefetcher(Loader(tokens(), 16, 3))
    fresh.next(2)
    fresh.restore(state)
    assert torch.equal(fresh.next(5).inputs_BT, expected[0])


def test_a_peek_moves_nothing() -> None:
    plain, ahead = Loader(tokens(), 16, 3), Prefetcher(Loader(tokens(), 16, 3))
    for rows in ((), (range(0, 2), range(3, 5)), (range(1, 2),)):
        before = ahead.state()
        seen = ahead.peek(5, rows).inputs_BT
        assert ahead.state() == before
        assert torch.equal(ahead.peek(5).inputs_BT, ahead.peek(5).inputs_BT)
        assert torch.equal(ahead.next(5, rows).inputs_BT, seen)
        assert torch.equal(plain.next(5, rows).inputs_BT, seen)
        assert ahead.state() == plain.state()


def test_what_goes_wrong_in_the_thread_is_raised_by_next(monkeypatch: pytest.MonkeyPatch) -> None:
    loader = Loader(tokens(), 16, 3)
    ahead = Prefetcher(loader)
    ahead.next(5)
    # The second batch is ready before the file goes.
    second = ahead._pending
    assert second is not None
    second.result()

    def damaged(count: int, rows: tuple[range, ...]) -> None:
        raise UserError("c_train_0.bin: it is gone")

    monkeypatch.setattr(loader, "next", damaged)
    ahead.next(5)
    with pytest.raises(UserError, match="it is gone"):
        ahead.next(5)


def test_a_bad_position_is_refused_and_the_old_one_kept() -> None:
    ahead = Prefetcher(Loader(tokens(), 16, 3))
    ahead.next(5)
    state = ahead.state()
    with pytest.raises(UserError, match="damaged"):
        ahead.restore({**state, "position": 10**6})
    assert ahead.state() == state
