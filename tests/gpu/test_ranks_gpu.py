"""Training steps on two GPUs over NCCL: the steps of one, and captured graphs against the same work launched."""

from __future__ import annotations

from typing import Any

import pytest
from ranks_cases import CASES, EVEN, stepped
from small import small_run

from jepamba.config import Run
from jepamba.data import corpus
from needs_gpus import needs_gpus
from spawn import together

pytestmark = [
    *needs_gpus(2),
    pytest.mark.filterwarnings("default"),
]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A model with everything in it, on the English inside Python."""
    run = small_run(tmp_path_factory.mktemp("cache"), EVEN)
    corpus(run.data)
    return run


@pytest.fixture(scope="module")
def two(small: Run) -> list[dict[str, Any]]:
    """What two GPUs do."""
    return together(2, stepped, small, CASES)


def test_two_gpus_do_what_one_does(small: Run, two: list[dict[str, Any]]) -> None:
    (alone,) = together(1, stepped, small, CASES)
    assert isinstance(alone, dict), alone
    for rank, found in enumerate(two):
        assert isinstance(found, dict), f"rank {rank}: {found}"
        for name, truth in alone.items():
            for ours, theirs in zip(found[name]["records"], truth["records"], strict=True):
                assert ours["ce"] == pytest.approx(theirs["ce"], rel=5e-3), name
                # Two GPUs give SIGReg a pass of twice the windows: another sample, another loss, another gradient.
                if name != "uneven":
                    assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=5e-2), name
                    assert ours["jepa"] == pytest.approx(theirs["jepa"], rel=5e-2), name
                    assert ours["sigreg"] == pytest.approx(theirs["sigreg"], rel=5e-2), name
            if "uneven" not in name:
                assert found[name]["norms"] == pytest.approx(truth["norms"], rel=5e-2), name


def test_graphs_with_sums_in_them_do_what_the_launches_do(small: Run, two: list[dict[str, Any]]) -> None:
    launched = {name: CASES[name] | {"train.graph": False} for name in ("timesteps", "uneven, exact", "uneven")}
    for replayed, plain in zip(two, together(2, stepped, small, launched), strict=True):
        assert isinstance(plain, dict), plain
        for name, truth in plain.items():
            for ours, theirs in zip(replayed[name]["records"], truth["records"], strict=True):
                assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5), name
                assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4), name
