"""All that training changes, in one place: weights, optimizers, data position, counters; built, saved, restored."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from jepamba.config import ConfigError, Run
from jepamba.data import Batch, BatchLayout, Corpus, Loader, Prefetcher
from jepamba.distributed import SINGLE_PROCESS, World
from jepamba.errors import UserError
from jepamba.jepa import JepaHeads
from jepamba.model import LanguageModel, State
from jepamba.optim import Optimizers
from jepamba.train.alike import marks
from jepamba.train.device import DeviceConfig


@dataclass
class Counters:
    """Counters of a run."""

    step: int = 0
    """Optimizer steps done."""
    seconds: float = 0.0
    """Seconds of training done, validations left out."""
    tokens: int = 0
    """Targets trained on."""
    bytes: int = 0
    """Bytes of text that those targets are."""
    skipped: int = 0
    """Steps, of those done, whose update was left out because their loss or gradient was not finite."""

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Counters:
        """The counters in a checkpoint. Raises `TypeError` or `ValueError` for what no run can have counted."""
        progress = cls(**values)
        for name, start in asdict(cls()).items():
            value = getattr(progress, name)
            if type(value) is not type(start) or not 0 <= value < 2**63:
                raise ValueError(f"progress.{name} = {str(value)[:40]}")
        return progress


class Session:
    """Model, training-only heads, optimizers, loader and counters of one run; on each of its `ranks` the same.

    Raises `UserError` for more ranks than a step has windows, and for `train.carry_state` on several.
    """

    def __init__(self, run: Run, corpus: Corpus, place: DeviceConfig, ranks: World = SINGLE_PROCESS) -> None:
        self.run, self.corpus, self.place, self.ranks = run, corpus, place, ranks
        self.marks = marks(corpus)
        """What the data must still be when the run is resumed."""
        if run.train.carry_state and ranks.world_size > 1:
            raise ConfigError(
                f"train.carry_state = true with {ranks.world_size} processes: each row of windows goes on where "
                "it ended, on one process; start one, or set train.carry_state = false"
            )
        seq_len = run.data.seq_len
        self.batch_layout = BatchLayout.of(
            run.train.tokens_per_step // seq_len, run.train.tokens_per_micro // seq_len, ranks.world_size
        )
        """How the windows of a step are dealt to micro-batches and ranks."""
        # One seed, drawn on the CPU: the same first weights on every device.
        torch.manual_seed(run.train.seed)
        self.model = LanguageModel(run.model, run.quant)
        if run.train.products != "bf16":
            self.model.use_fp8(mixers=run.train.products == "fp8")
        self.heads = JepaHeads(run.jepa, run.model.d_model, ranks) if run.jepa.active else None
        # Only the kept weights: the heads are plain modules, whose passes want fp32.
        masters = torch.bfloat16 if run.train.masters == "bf16" else torch.float32
        self.modules = nn.ModuleDict({"model": self.model})
        if self.heads is not None:
            self.modules["heads"] = self.heads
        self.modules.to(place.device)
        self.model.to(masters)
        self.optimizers = Optimizers.build(self.modules.named_parameters(), run.optim, place.device, ranks)
        data = run.data
        rows = run.train.tokens_per_micro // data.seq_len if run.train.carry_state else 0
        loader = Loader(corpus.train, data.seq_len, run.train.seed, data.shuffle, data.reset, rows)
        self.loader = Prefetcher(loader, pin=place.device.type == "cuda")
        self.carried: State | None = self.model.initial_state(rows) if rows else None
        """With `train.carry_state`, what each row of the next micro-batch starts from; the same tensors all along."""
        self.progress = Counters()
        if run.train.compile:
            for block in self.model.blocks:
                block.compile()

    def next_windows(self) -> Batch:
        """This rank's windows of the next step, those of its first micro-batch first."""
        return self.loader.next(self.batch_layout.windows, self.batch_layout.of_rank(self.ranks.rank))

    def peek_windows(self) -> Batch:
        """What `next_windows` will give."""
        return self.loader.peek(self.batch_layout.windows, self.batch_layout.of_rank(self.ranks.rank))

    def parameters(self) -> list[nn.Parameter]:
        """Every parameter, kept and training-only."""
        return list(self.modules.parameters())

    def leaves(self) -> list[Tensor]:
        """What a pass over settled weights takes gradients of: these weights, and the training-only parameters."""
        settled = [leaf for module in self.model.gridded() for leaf in module.leaves.values()]
        return [*settled, *(self.heads.parameters() if self.heads is not None else [])]

    def carry(self, state: State | None) -> None:
        """Hand `state` (None: an empty one) on to the next micro-batch, detached; nothing without `train.carry_state`.

        Only after the backward pass of what started from the state before: its tensors are overwritten.
        """
        for block, kept in enumerate(self.carried or []):
            for index, value in enumerate(kept):
                value.zero_() if state is None else value.copy_(state[block][index].detach())

    def _carried(self) -> dict[str, Tensor]:
        return {
            f"{block}.{name}": value
            for block, state in enumerate(self.carried or [])
            for name, value in zip(state._fields, state, strict=True)
        }

    def tensors(self) -> dict[str, Tensor]:
        """Everything that must survive a restart and is a tensor, by name."""
        weights = {f"weights/{name}": value for name, value in self.modules.state_dict().items()}
        optimizers = {f"optim/{name}": value for name, value in self.optimizers.state().items()}
        # Gradients outlive a step only where `optim.train_conv` is off and nothing clears them.
        piled = {f"grad/{name}": p.grad for name, p in self.optimizers.groups.untrained.items() if p.grad is not None}
        carried = {f"carried/{name}": value for name, value in self._carried().items()}
        return weights | optimizers | piled | carried | {"rng/cpu": torch.get_rng_state()}

    def state(self) -> dict[str, Any]:
        """Everything that must survive a restart and is not a tensor, as JSON; with what the data must still be."""
        return {
            "progress": asdict(self.progress),
            "loader": self.loader.state(),
            "data": self.marks,
            "widths": self.model.quant.width_of,
        }

    def restore(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Continue from a checkpoint. Raises `UserError` if the data or the shapes are not the run's."""
        self._check_data(state)
        sections: dict[str, dict[str, Tensor]] = {"weights": {}, "optim": {}, "grad": {}, "carried": {}, "rng": {}}
        try:
            for name, value in tensors.items():
                section, _, rest = name.partition("/")
                sections[section][rest] = value
            progress = Counters.from_json(state["progress"])
            self.model.set_widths(state.get("widths", {}))
            self.modules.load_state_dict(sections["weights"])
            self.optimizers.restore(sections["optim"])
            for name, value in sections["grad"].items():
                parameter = self.optimizers.groups.untrained[name]
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                parameter.grad.copy_(value)
            for name, kept in self._carried().items():
                value = sections["carried"][name]
                if value.shape != kept.shape:
                    raise ValueError(
                        f"the carried state {name} has shape {tuple(value.shape)}, not {tuple(kept.shape)}"
                    )
                kept.copy_(value)
            torch.set_rng_state(sections["rng"]["cpu"])
            self.loader.restore(state["loader"])
        except (KeyError, TypeError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"the checkpoint does not fit this run's config: {reason}") from None
        self.progress = progress

    def _check_data(self, state: dict[str, Any]) -> None:
        """Raise `UserError` if the data, as far as a sample tells, is not what the run of a checkpoint had."""
        before = state.get("data")
        if not isinstance(before, dict):
            # From before checkpoints held all marks.
            known = {"tokenizer": state.get("tokenizer"), "number of training tokens": state.get("train_tokens")}
            before = self.marks | known
        for name, here in self.marks.items():
            there = before.get(name)
            if there != here:
                figures = f" ({here:,}, then {there:,})" if isinstance(here, int) and isinstance(there, int) else ""
                raise UserError(
                    f"the {name} is not what this run started with{figures}: put the files back, or say where they are "
                    "(--data.train, --data.val, --data.tokenizer)"
                )
