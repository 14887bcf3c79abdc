"""All that training changes, in one place: weights, optimizers, data position, counters; built, saved, restored."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from jepamba.config import Run
from jepamba.data import Ahead, Corpus, Loader
from jepamba.errors import UserError
from jepamba.jepa import JepaHeads
from jepamba.model import LanguageModel
from jepamba.optim import Optimizers
from jepamba.train.device import Place


@dataclass
class Progress:
    """Counters of a run."""

    step: int = 0
    """Optimizer steps done."""
    seconds: float = 0.0
    """Seconds of training done, validations left out."""
    tokens: int = 0
    """Targets trained on."""
    bytes: int = 0
    """Bytes of text that those targets are."""


class Session:
    """Model, training-only heads, optimizers, loader and counters of one run."""

    def __init__(self, run: Run, corpus: Corpus, place: Place) -> None:
        self.run, self.corpus, self.place = run, corpus, place
        # One seed, drawn on the CPU: the same first weights on every device.
        torch.manual_seed(run.train.seed)
        self.model = LanguageModel(run.model, run.quant)
        self.heads = JepaHeads(run.jepa, run.model.dim) if run.jepa.active else None
        # Only the kept weights: the heads are plain modules, whose passes want fp32.
        masters = torch.bfloat16 if run.train.masters == "bf16" else torch.float32
        self.modules = nn.ModuleDict({"model": self.model})
        if self.heads is not None:
            self.modules["heads"] = self.heads
        self.modules.to(place.device)
        self.model.to(masters)
        self.optimizers = Optimizers.build(self.modules.named_parameters(), run.optim, place.device)
        data = run.data
        loader = Loader(corpus.train, data.sequence, run.train.seed, data.shuffle, data.reset)
        self.loader = Ahead(loader, pin=place.device.type == "cuda")
        self.progress = Progress()
        if run.train.compile:
            for block in self.model.blocks:
                block.compile()

    def parameters(self) -> list[nn.Parameter]:
        """Every parameter, kept and training-only."""
        return list(self.modules.parameters())

    def tensors(self) -> dict[str, Tensor]:
        """Everything that must survive a restart and is a tensor, by name."""
        weights = {f"weights/{name}": value for name, value in self.modules.state_dict().items()}
        optimizers = {f"optim/{name}": value for name, value in self.optimizers.state().items()}
        # Gradients outlive a step only where `optim.train_conv` is off and nothing clears them.
        piled = {f"grad/{name}": p.grad for name, p in self.optimizers.groups.untrained.items() if p.grad is not None}
        return weights | optimizers | piled | {"rng/cpu": torch.get_rng_state()}

    def state(self) -> dict[str, Any]:
        """Everything that must survive a restart and is not a tensor, as JSON; with what the data must still be."""
        return {
            "progress": asdict(self.progress),
            "loader": self.loader.state(),
            "tokenizer": self.corpus.tokenizer.fingerprint,
            "train_tokens": len(self.corpus.train),
            "widths": self.model.quant.width_of,
        }

    def restore(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Continue from a checkpoint. Raises `UserError` if the data or the shapes are not the run's."""
        same_tokenizer = state.get("tokenizer") == self.corpus.tokenizer.fingerprint
        if not same_tokenizer or state.get("train_tokens") != len(self.corpus.train):
            raise UserError(
                "the training data or its tokenizer is not what this run started with; put it back to resume"
            )
        sections: dict[str, dict[str, Tensor]] = {"weights": {}, "optim": {}, "grad": {}, "rng": {}}
        try:
            for name, value in tensors.items():
                section, _, rest = name.partition("/")
                sections[section][rest] = value
            progress = Progress(**state["progress"])
            self.model.set_widths(state.get("widths", {}))
            self.modules.load_state_dict(sections["weights"])
            self.optimizers.restore(sections["optim"])
            for name, value in sections["grad"].items():
                parameter = self.optimizers.groups.untrained[name]
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                parameter.grad.copy_(value)
            torch.set_rng_state(sections["rng"]["cpu"])
            self.loader.restore(state["loader"])
        except (KeyError, TypeError, RuntimeError, ValueError) as error:
            raise UserError(f"the checkpoint does not fit this run's config: {str(error).splitlines()[0]}") from None
        self.progress = progress
