"""The collectives, in real processes over gloo."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from jepamba.distributed import SINGLE_PROCESS, World, process_group
from jepamba.errors import UserError
from spawn import together


def collectives(world: World) -> dict[str, Any]:
    """Call every collective once and return the results."""
    rank, size = world.rank, world.world_size
    found: dict[str, Any] = {"who": (rank, size, world.local_rank, world.is_rank_zero)}
    own = torch.arange(4.0) + rank
    found["sum"] = world.all_reduce_(own.clone()).tolist()
    # More than a bucket in all, in two precisions, and not all contiguous.
    many = [torch.full((3000, 3000), rank + 1.0), torch.full((3, 5), rank + 1.0).T, torch.ones(9_000_000).bfloat16()]
    world.all_reduce_each_(many)
    found["sum each"] = [(float(value.min()), float(value.max()), value.dtype) for value in many]
    leaf = own.clone().requires_grad_()
    # Each rank adds a part of the loss that weighs the sum differently.
    ((rank + 1) * world.all_reduce(leaf)).square().sum().backward()
    assert leaf.grad is not None
    found["summed gradient"] = leaf.grad.tolist()
    found["gathered"] = world.all_gather(own.view(2, 2)).tolist()
    taken = torch.full((3,), float(rank))
    world.broadcast_([taken])
    found["taken over"] = taken.tolist()
    received = world.broadcast_tensors({"a/b": torch.eye(2), "n": torch.tensor(7)} if world.is_rank_zero else {})
    found["received out"] = {name: value.tolist() for name, value in received.items()}
    found["gathered objects"] = world.all_gather_object({"rank": rank, "text": "é" * (500 * rank)})
    found["shared"] = world.broadcast_object([rank, None, "x" * 700])
    found["chiefly"] = world.on_rank_zero(lambda: {"by": rank})
    turns: list[int] = []
    found["machine"] = world.local_rank_zero_first(lambda: (turns.append(rank), rank)[1])
    world.check_equal({"same": torch.ones(5), "whole": torch.arange(3)})
    return found


def mistakes(world: World) -> list[str]:
    """The errors that each rank raises after one rank failed."""

    def wrong() -> None:
        raise UserError("config.toml: no such run")

    def broken() -> None:
        if world.rank == 1:
            raise OSError("disk gone")

    found = []
    different = {"equal": torch.ones(5), "weights": torch.full((5,), 1.0 + 1e-6 * (world.rank == 1))}
    for attempt in (
        lambda: world.on_rank_zero(wrong),
        lambda: world.local_rank_zero_first(broken),
        lambda: world.check_equal(different),
    ):
        try:
            attempt()
        except Exception as error:
            found.append(f"{type(error).__name__}: {error}")
    return found


@pytest.mark.parametrize("size", [1, 3])
def test_collectives(size: int) -> None:
    results = together(size, collectives)
    total = [sum(i + r for r in range(size)) for i in range(4)]
    weights = sum((r + 1) ** 2 for r in range(size))
    ranks = sum(range(1, size + 1))
    for rank, found in enumerate(results):
        assert found["who"] == (rank, size, rank, rank == 0)
        assert found["sum"] == total
        assert found["sum each"] == [
            (ranks, ranks, torch.float32),
            (ranks, ranks, torch.float32),
            (size, size, torch.bfloat16),
        ]
        assert found["summed gradient"] == [2 * weights * value for value in total]
        assert found["gathered"] == [[[r, r + 1.0], [r + 2.0, r + 3.0]] for r in range(size)]
        assert found["taken over"] == [0.0] * 3
        assert found["received out"] == {"a/b": [[1.0, 0.0], [0.0, 1.0]], "n": 7}
        assert found["gathered objects"] == [{"rank": r, "text": "é" * (500 * r)} for r in range(size)]
        assert found["shared"] == [0, None, "x" * 700]
        assert found["chiefly"] == {"by": 0}
        assert found["machine"] == rank


def test_what_fails_on_one_rank_is_raised_on_all() -> None:
    first, second = together(2, mistakes)
    assert first == [
        "UserError: config.toml: no such run",
        "UserError: rank 1: OSError: disk gone",
        "RuntimeError: weights is not the same on rank 0 and on rank 1",
    ]
    assert second == ["UserError: config.toml: no such run", "OSError: disk gone", first[2]]


def test_without_torchrun_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with process_group() as world:
        assert world is SINGLE_PROCESS
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(UserError, match="RANK"), process_group():
        pass


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE = 0"),
        ({"RANK": "2"}, "RANK = 2 and WORLD_SIZE = 2"),
        ({"RANK": "x"}, "RANK = 'x'"),
        ({"MASTER_ADDR": ""}, r"cannot connect to each other at \?:29500 .*MASTER_ADDR"),
        ({"MASTER_PORT": "hello"}, r"cannot connect to each other at 127\.0\.0\.1:hello .*hello"),
        ({"MASTER_PORT": "70000"}, r"cannot connect to each other at 127\.0\.0\.1:70000 "),
    ],
)
def test_an_incomplete_environment_is_a_mistake_in_one_line(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], message: str
) -> None:
    whole = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for name, value in (whole | settings).items():
        if value:
            monkeypatch.setenv(name, value)
        else:
            monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=message) as raised, process_group():
        pass
    assert "\n" not in str(raised.value)
