"""`Run`: all sections, and the checks across sections."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field

from jepamba.config.checks import require
from jepamba.config.data import Data
from jepamba.config.eval import Eval
from jepamba.config.jepa import Jepa
from jepamba.config.model import Model
from jepamba.config.optim import Optim
from jepamba.config.quant import Quant
from jepamba.config.train import BATCH_SETTINGS, Train

MACHINE_SETTINGS = (
    "data.train",
    "data.val",
    "data.tokenizer",
    "data.cache",
    "train.init_from",
    "train.threads",
)
"""Settings that may change on resume: paths (the contents must stay the same) and CPU threads (which change results by
rounding alone)."""


@dataclass(frozen=True)
class Run:
    """All settings of a run."""

    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    jepa: Jepa = field(default_factory=Jepa)
    quant: Quant = field(default_factory=Quant)
    optim: Optim = field(default_factory=Optim)
    train: Train = field(default_factory=lambda: Train(steps=100))
    eval: Eval = field(default_factory=Eval)

    def __post_init__(self) -> None:
        for section in dataclasses.fields(self):
            for name, value in vars(getattr(self, section.name)).items():
                require(
                    not isinstance(value, float) or math.isfinite(value) or name == "seconds",
                    f"{section.name}.{name} = {value}: must be a finite number",
                )
        require(
            self.train.tokens_per_micro % self.data.seq_len == 0 or not {*self.train.dial}.isdisjoint(BATCH_SETTINGS),
            f"train.tokens_per_micro = {self.train.tokens_per_micro} is not a multiple of data.seq_len = "
            f"{self.data.seq_len}",
        )
        require(
            self.jepa.active or not self.train.keep_heads,
            "train.keep_heads = true, but jepa.weight and jepa.sigreg_weight are 0: the run has no heads; "
            "set one of the weights, or train.keep_heads = false",
        )
        require(
            self.jepa.layer <= self.model.n_layer or "model.n_layer" in self.train.dial,
            f"jepa.layer = {self.jepa.layer}: the model has model.n_layer = {self.model.n_layer} blocks",
        )
        require(
            self.jepa.stride < self.data.seq_len,
            f"jepa.stride = {self.jepa.stride}: must be less than data.seq_len = {self.data.seq_len}",
        )
        require(
            not (self.train.init_from and self.data.tokenizer.endswith(".model")),
            f"data.tokenizer = {self.data.tokenizer}: with train.init_from it is that of the initial weights",
        )
        require(
            self.eval.stride <= self.data.seq_len,
            f"eval.stride = {self.eval.stride} is longer than the window, data.seq_len = {self.data.seq_len}",
        )
        require(
            self.data.tokenizer != "bytes" or self.model.vocab_size in (0, 256),
            f"model.vocab_size = {self.model.vocab_size}: byte mode has exactly 256 symbols",
        )
        require(
            not (self.jepa.sigreg_weight > 0 and self.jepa.sigreg_pool == "timestep")
            or (self.jepa.sigreg_sample == "step" and self.train.tokens_per_step >= 2 * self.data.seq_len)
            or self.train.tokens_per_micro >= 2 * self.data.seq_len,
            f"train.tokens_per_micro = {self.train.tokens_per_micro}: SIGReg per timestep needs at least 2 windows "
            "per micro-batch; raise train.tokens_per_micro, or set jepa.sigreg_pool = positions",
        )
        require(
            not (self.jepa.weight > 0 and self.jepa.rollout_steps * self.jepa.target_tokens >= self.data.seq_len),
            f"jepa.rollout_steps = {self.jepa.rollout_steps} times jepa.target_tokens = {self.jepa.target_tokens}: "
            f"must be less than data.seq_len = {self.data.seq_len}",
        )
