"""What every test shares: shape annotations checked at run time, few threads, fixed seeds."""

from __future__ import annotations

import os
import signal

# Before torch is imported anywhere: the machine may have few cores, and several test processes.
os.environ.setdefault("OMP_NUM_THREADS", "2")
# Matplotlib's list of fonts takes seconds to make: it stays where it is when the cache moves (below).
os.environ.setdefault("MPLCONFIGDIR", os.path.expanduser("~/.cache/matplotlib"))

import pytest
from jaxtyping import install_import_hook

# Every function of the package is checked against its annotations, tensor shapes included, while the tests run.
install_import_hook("jepamba", "checker.check")

import torch  # noqa: E402 - after the environment is set

# A process that was started in the background may ignore Ctrl-C, and so would every process that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


LONGEST = ("test_triton", "test_train", "test_ranks_faults", "test_fuzz", "test_ranks_run", "test_cli_demo")
"""The files that take longest, together half of the time: begun first, so that no process ends with one alone."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, the others in their order."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _private_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tokenized text is cached by content; the tests have a cache of their own, shared by the whole session."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
