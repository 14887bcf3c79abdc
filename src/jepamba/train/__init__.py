"""Training: `train` a run into a folder, `resume` it exactly.

The package can be called: `jepamba.train("cpu", …)` is `jepamba.api.train`.
"""

import sys
from types import ModuleType
from typing import Any

from jepamba.train.run_folder import read_and_resolve, resolve, resume, train

__all__ = ["read_and_resolve", "resolve", "resume", "train"]


class _CallablePackage(ModuleType):
    """An import of this package makes it the attribute `train` of `jepamba`, where the API has a function."""

    def __call__(self, preset: Any, *, out: Any = None, **sections: Any) -> Any:
        """Train a model, pack it, score it, and load it; see `jepamba.api.train`."""
        from jepamba.api import train as train_and_load

        return train_and_load(preset, out=out, **sections)


sys.modules[__name__].__class__ = _CallablePackage
