"""Training: `jepamba.train("cpu", …)` trains a model, `jepamba.resume("runs/cpu")` continues a run exactly."""

import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from jepamba import api
from jepamba.config import Run
from jepamba.text_model import TextModel
from jepamba.train.run_folder import read_and_resolve, resolve, resume, train

__all__ = ["read_and_resolve", "resolve", "resume", "train"]


class _CallablePackage(ModuleType):
    """An import of this package makes it the attribute `train` of `jepamba`, where the API has a function."""

    def __call__(self, preset: str | Run, *, out: str | Path | None = None, **sections: Mapping[str, Any]) -> TextModel:
        return api.train(preset, out=out, **sections)

    __call__.__doc__ = api.train.__doc__


# What `help(jepamba.train)` shows.
__doc__ += f"\n\njepamba.train{inspect.signature(api.train)}\n\n{inspect.getdoc(api.train)}\n"
sys.modules[__name__].__class__ = _CallablePackage
