"""On a GPU with an empty cache of Triton, everything is compiled before the first step, and the steps are the same."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from needs_gpus import needs_gpus

pytestmark = [*needs_gpus(), pytest.mark.filterwarnings("default")]

CODE = """
import sys
from pathlib import Path
import triton
import triton.runtime.build
from small import small_run
from jepamba.data import corpus
from jepamba.evaluate import score_plain
from jepamba.ops.compile_only import can_compile_ahead
from jepamba.train import resolve
from jepamba.train.device import choose_device
from jepamba.train.state import TrainState
from jepamba.train.step import Trainer

hits, built, build = [], [], triton.runtime.build._build

def noted(name, *args, **settings):
    built.append(name)
    return build(name, *args, **settings)

triton.runtime.build._build = noted
triton.knobs.compilation.listener = lambda *, src, cache_hit, **_: hits.append((src.name, cache_hit))
run = small_run(Path(sys.argv[1]), {"train.val_every": 1, "quant.qat_fraction": 0.5, "eval.tokens_per_batch": 16384})
text = corpus(run.data)
run = resolve(run, text)
assert can_compile_ahead()

def steps(parallel=True):
    trainer = Trainer(TrainState(run, text, choose_device(run.train)))
    trainer._compiled = not parallel
    trainer.state.set_training_mode(0.0)
    trainer._compile_kernels(0.0)
    ahead = len(hits)
    records = [trainer.train_step(fraction) for fraction in (0.0, 0.0, 1.0, 1.0)]
    score_plain(
        trainer.state.model, text.val, run.data.seq_len, reset=run.data.reset, limit=run.eval.tokens_per_batch,
        tokens_per_batch=run.eval.tokens_per_batch,
    )
    return ahead, records

ahead, records = steps()
compiled_here = [name for name, hit in hits if not hit]
assert ahead > 40, hits
# The first shows that there is something to compile; forks compile the rest, and this process loads it.
assert len(compiled_here) == 1, compiled_here
assert len(hits) == ahead, hits[ahead:]
# So with the functions in C that launch them, of which later versions of Triton have only one.
assert built.count("__triton_launcher") <= 1, built
assert steps(parallel=False)[1] == records
"""


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs 2 CPU cores")
def test_all_kernels_are_compiled_before_the_first_step(tmp_path: Path) -> None:
    paths = [str(Path(__file__).parent), str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path / "triton"), "PYTHONPATH": os.pathsep.join(paths)}
    subprocess.run([sys.executable, "-c", CODE, str(tmp_path / "text")], env=environment, check=True, timeout=600)
