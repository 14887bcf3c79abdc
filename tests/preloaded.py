"""What the server of `processes` and `spawn` imports and compiles once, so that no process that it forks does."""

import pytest  # noqa: F401
import scipy.sparse.csgraph  # noqa: F401
import tomli_w  # noqa: F401
import torch
import torch._dynamo

import faulty  # noqa: F401
import jepamba.cli
import jepamba.report.html
import jepamba.train
import jepamba.train.initial_settings  # noqa: F401
import processes  # noqa: F401
from jepamba.decode.cpu import compile_step

torch.set_num_threads(1)
compile_step()
