"""The settings of a run: a frozen dataclass for each section, and `Run`, which contains them.

Each field is a command-line flag (`--model.d_model 640`) and a key of a preset (`[model] d_model = 640`). Each class
checks its own fields in `__post_init__`; `Run` checks the combinations of two sections. A refused setting raises
`ConfigError` with the field, its value and the remedy.
"""

from jepamba.config.checks import ConfigError
from jepamba.config.data import Data
from jepamba.config.eval import Eval
from jepamba.config.jepa import Jepa
from jepamba.config.model import Model
from jepamba.config.optim import Optim
from jepamba.config.quant import Quant
from jepamba.config.run import MACHINE_SETTINGS, Run
from jepamba.config.settings import (
    BUDGET_SETTINGS,
    build,
    field_docs,
    flatten,
    from_dict,
    merge,
    setting_types,
    to_dict,
    with_settings,
)
from jepamba.config.train import BUDGETS, Train

__all__ = [
    "BUDGETS",
    "BUDGET_SETTINGS",
    "MACHINE_SETTINGS",
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
