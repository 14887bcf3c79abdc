"""Steps on several GPUs, for processes of their own: nothing here touches a GPU when it is imported."""

from __future__ import annotations

from typing import Any

from jepamba.config import Run, with_settings
from jepamba.data import corpus
from jepamba.distributed import World
from jepamba.train import resolve
from jepamba.train.device import choose_device
from jepamba.train.measure import term_gradients
from jepamba.train.state import TrainState
from jepamba.train.step import Trainer

STEPS = 4
# Sixteen windows in one pass: SIGReg's sample is the same on one GPU and on two.
EVEN = {"train.tokens_per_micro": 4096, "train.tokens_per_step": 4096}
# Fourteen windows: on two GPUs four passes of three and four, micro-batches of one window and of two.
UNEVEN = {"train.tokens_per_micro": 512, "train.tokens_per_step": 14 * 256}
CASES: dict[str, dict[str, Any]] = {
    "timesteps": EVEN,
    "positions": EVEN | {"jepa.sigreg_pool": "positions", "jepa.sigreg_timesteps": 0, "jepa.sigreg_scale_n": True},
    "batch norm": EVEN | {"jepa.projector": "mlp-batchnorm"},
    "uneven, exact": UNEVEN | {"jepa.sigreg_sample": "step"},
    "uneven": UNEVEN,
}


def stepped(world: World, run: Run, cases: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Some steps of each case: their records, and the terms' gradients before them."""
    found: dict[str, Any] = {}
    for name, settings in cases.items():
        changed = with_settings(run, settings)
        text = corpus(changed.data)
        state = TrainState(resolve(changed, text), text, choose_device(changed.train), world)
        trainer = Trainer(state)
        norms = term_gradients(state, 0.0)
        found[name] = {"norms": norms, "records": [trainer.train_step(0.0) for _ in range(STEPS)]}
        world.check_equal(dict(state.modules.state_dict()))
        trainer.release()
    return found
