"""What each command does. Rooms that need PyTorch are imported inside the command that needs them.

Every function takes the parsed arguments and returns the exit code.
"""

from jepamba.commands.common import columns, free_folder
from jepamba.commands.data import data_build, data_fineweb, data_info
from jepamba.commands.inspecting import inspect
from jepamba.commands.packing import compress, decompress
from jepamba.commands.sampling import generate
from jepamba.commands.scoring import evaluate
from jepamba.commands.study import study_plans, study_report, study_run
from jepamba.commands.submission import submission
from jepamba.commands.training import demo, presets, resume, train
from jepamba.commands.watching import watch

__all__ = [
    "columns",
    "compress",
    "data_build",
    "data_fineweb",
    "data_info",
    "decompress",
    "demo",
    "evaluate",
    "free_folder",
    "generate",
    "inspect",
    "presets",
    "resume",
    "study_plans",
    "study_report",
    "study_run",
    "submission",
    "train",
    "watch",
]
