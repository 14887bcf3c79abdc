"""Every setting of a run, as frozen dataclasses: one for each section, and `Run`, which holds them all.

A field is also a command-line flag (`--model.d_model 640`) and a key of a preset (`[model] d_model = 640`). Each
class checks what it can check alone in `__post_init__`; `Run` checks what needs two sections. A setting that makes no
sense is refused with a `ConfigError` that names the field, its value and the remedy.
"""

from jepamba.config.checks import ConfigError
from jepamba.config.data import Data
from jepamba.config.eval import Eval
from jepamba.config.jepa import Jepa
from jepamba.config.model import Model
from jepamba.config.optim import Optim
from jepamba.config.quant import Quant
from jepamba.config.run import OF_A_MACHINE, Run
from jepamba.config.settings import (
    build,
    field_docs,
    flatten,
    from_dict,
    merge,
    setting_types,
    to_dict,
    with_settings,
)
from jepamba.config.train import Train

__all__ = [
    "OF_A_MACHINE",
    "ConfigError",
    "Data",
    "Eval",
    "Jepa",
    "Model",
    "Optim",
    "Quant",
    "Run",
    "Train",
    "build",
    "field_docs",
    "flatten",
    "from_dict",
    "merge",
    "setting_types",
    "to_dict",
    "with_settings",
]
