"""What every test shares: shape annotations checked at run time, few threads, fixed seeds."""

from __future__ import annotations

import os
import signal

# Before torch is imported anywhere: the machine may have few cores, and several test processes.
os.environ.setdefault("OMP_NUM_THREADS", "2")
# Matplotlib's list of fonts takes seconds to make: it stays where it is when the cache moves (below).
os.environ.setdefault("MPLCONFIGDIR", os.path.expanduser("~/.cache/matplotlib"))

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook

import examples

# A process that was started in the background may ignore Ctrl-C, and so would every process that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

# Triton reads this at its first import: its interpreter runs the kernels on CPU tensors. A GPU runs them compiled.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
# Triton exists for Linux alone. Elsewhere its kernels cannot be imported.
collect_ignore_glob = [] if find_spec("triton") else ["ops/*/test_triton.py", "ops/*/test_gpu.py"]

LONGEST = ("test_triton", "test_train", "test_ranks_faults", "test_fuzz", "test_ranks_run", "test_cli_demo")
"""The files that take longest, together half of the time: begun first, so that no process ends with one alone."""


def pytest_configure(config: pytest.Config) -> None:
    """Check functions against their annotations while the tests run.

    `make test` checks the modules that annotate tensor shapes; mypy has the others. The check of every call doubles the
    CPU time of training, so the whole package has it in `make test-all` alone.
    """
    sources = Path(__file__).parents[1] / "src"
    shaped = [path for path in sources.rglob("*.py") if "jaxtyping" in path.read_text(encoding="utf-8")]
    names = [".".join(path.relative_to(sources).with_suffix("").parts) for path in shaped]
    whole = config.getoption("markexpr") != "not slow"
    examples.share = 1 if whole else 6
    install_import_hook("jepamba" if whole else [name.removesuffix(".__init__") for name in names], "checker.check")


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
