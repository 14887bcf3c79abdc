"""Tests of the kernels of the Epps–Pulley statistic against the reference in float64."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jepamba.ops import epps_pulley
from ops.compare import DEVICE, beyond
from ops.epps_pulley.cases import epps_pulley_errors


@pytest.fixture(autouse=True)
def _kernels_on_the_cpu_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(epps_pulley, "use_triton", lambda _: True)


@pytest.mark.parametrize(
    ("samples", "draws", "directions", "knots", "first"),
    [
        (3, 20, 40, 17, 0.2),
        pytest.param(1, 600, 33, 17, 0.0, marks=pytest.mark.slow),
        (2, 5, 7, 2, 1.0),
        (1, 70, 5, 64, 0.0),
        (1, 1, 9, 3, 0.5),
    ],
)
def test_epps_pulley(samples: int, draws: int, directions: int, knots: int, first: float) -> None:
    worst = epps_pulley_errors(samples, draws, directions, knots, first, DEVICE)
    assert beyond(worst, 1e-5) == {}


@pytest.mark.slow
@settings(max_examples=5, deadline=None, derandomize=True)
@given(
    samples=st.integers(1, 3),
    draws=st.integers(4, 60),
    directions=st.integers(8, 70),
    knots=st.integers(3, 20),
    first=st.floats(0, 1),
)
def test_epps_pulley_of_random_shapes(samples: int, draws: int, directions: int, knots: int, first: float) -> None:
    worst = epps_pulley_errors(samples, draws, directions, knots, first, DEVICE)
    assert beyond(worst, 1e-5) == {}
