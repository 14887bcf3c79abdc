"""jepamba: small Mamba-2 language models with quantized weights, measured in bits per byte.

`jepamba.load`, `jepamba.train` and `jepamba.resume` return a `jepamba.TextModel`; see docs/python.md.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jepamba.api import load as load
    from jepamba.api import resume as resume
    from jepamba.api import train as train
    from jepamba.errors import UserError as UserError
    from jepamba.evaluate.text_score import TextScore as TextScore
    from jepamba.text_model import TextModel as TextModel

import os

# Read when PyTorch is imported. By default a thread that waits for the others is busy for up to a millisecond. Where
# another process wants its core, a step on two cores then takes several times as long, so threads sleep there. To wake
# 31 of them takes longer than most operations do (docs/results/cpu-speed-2026-11-29.md).
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
if CORES <= 4:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.2.0.dev0"
__all__ = ["TextModel", "TextScore", "UserError", "__version__", "load", "resume", "train"]
# `train` is the package of this name, which can be called: an import of it sets the attribute in any case.
_MODULES = {
    "TextModel": "text_model",
    "TextScore": "evaluate.text_score",
    "UserError": "errors",
    "load": "api",
    "resume": "api",
}


def __getattr__(name: str) -> Any:
    """Import the API when it is first used, so that `import jepamba` does not import PyTorch."""
    if name == "train":
        return import_module("jepamba.train")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"jepamba.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
