"""How many examples hypothesis draws: all of them in `make test-all`, a part in `make test`."""

from __future__ import annotations

share = 1
"""One of so many is drawn; tests/conftest.py sets it before any test is read."""


def examples(count: int) -> int:
    """The number of examples of a test that draws `count` in `make test-all`."""
    return max(10, count // share)
