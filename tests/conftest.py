"""What every test shares: few threads, fixed seeds, a private cache, and in `make test-all` checked annotations."""

from __future__ import annotations

import os
import signal

# Before torch is imported anywhere: the machine may have few cores, and several test processes.
os.environ.setdefault("OMP_NUM_THREADS", "2")
# Matplotlib's list of fonts takes seconds to make: it stays where it is when the cache moves (below).
os.environ.setdefault("MPLCONFIGDIR", os.path.expanduser("~/.cache/matplotlib"))

from importlib.util import find_spec

import pytest
import torch
from jaxtyping import install_import_hook

import examples

# A process that was started in the background or by nohup may ignore signals, and so would every process that the tests
# start.
signal.signal(signal.SIGINT, signal.default_int_handler)
for _number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(_number, signal.SIG_DFL)

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

# Triton reads this at its first import: its interpreter runs the kernels on CPU tensors. A GPU runs them compiled.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
# Triton exists for Linux alone. Elsewhere its kernels cannot be imported.
collect_ignore_glob = [] if find_spec("triton") else ["ops/*/test_triton.py", "ops/*/test_gpu.py"]

LONGEST = ("test_triton", "test_train", "test_ranks_faults", "test_fuzz", "test_ranks_run", "test_cli_demo")
"""The files that take longest, together half of the time: begun first, so that no process ends with one alone."""


def pytest_configure(config: pytest.Config) -> None:
    """In `make test-all`, check every call in the package against its annotations, shapes included.

    The checks take a fifth to a third of the CPU time, so `make test` runs without them.
    """
    if config.getoption("markexpr") == "not slow":
        examples.share = 6
    else:
        install_import_hook("jepamba", "checker.check")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, the others in their order."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _private_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Text and kernels are cached by content; the tests have a cache of their own, shared by all of their processes."""
    base = tmp_path_factory.getbasetemp()
    os.environ["XDG_CACHE_HOME"] = str((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache")
