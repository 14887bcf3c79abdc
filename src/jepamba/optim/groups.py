"""Which parameter is updated by which optimizer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from jepamba.config import Optim
from jepamba.distributed import SINGLE_PROCESS, World
from jepamba.optim.muon import Muon

NOT_MATRICES = ("token_embed", "conv_weight", "mix", "skip_weight")
"""Two-dimensional parameters that are the embedding, a stack of filters or a stack of vectors: AdamW. The tie
correction, a matrix of the head, is not among them: Muon."""
SSM_SCALARS = ("A_log", "dt_bias", "D")
"""Parameters that set time scales; decay would drag them towards a meaningless 0."""


@dataclass
class Groups:
    """Named parameters by their treatment. `untrained` holds the convolutions where `optim.train_conv` is off."""

    muon: dict[str, Tensor] = field(default_factory=dict)
    adam: dict[str, Tensor] = field(default_factory=dict)
    adam_no_decay: dict[str, Tensor] = field(default_factory=dict)
    untrained: dict[str, Tensor] = field(default_factory=dict)


def group_parameters(named: Iterable[tuple[str, Tensor]], config: Optim) -> Groups:
    """Every parameter in exactly one group: Muon for matrices (training-only ones too), AdamW for all else."""
    groups = Groups()
    for name, p in named:
        leaf = name.removesuffix(".master").rsplit(".", 1)[-1]
        if leaf in ("conv_weight", "conv_bias") and not config.train_conv:
            groups.untrained[name] = p
        elif leaf in SSM_SCALARS and not config.decay_ssm:
            groups.adam_no_decay[name] = p
        elif p.ndim == 2 and leaf not in NOT_MATRICES:
            groups.muon[name] = p
        else:
            groups.adam[name] = p
    return groups


@dataclass
class Optimizers:
    """Muon and AdamW as one: set the schedule, step, and name the state for a checkpoint."""

    groups: Groups
    config: Optim
    muon: Muon
    adam: torch.optim.AdamW

    @classmethod
    def build(
        cls, named: Iterable[tuple[str, Tensor]], config: Optim, device: torch.device, world: World = SINGLE_PROCESS
    ) -> Optimizers:
        """Fresh optimizers for the named parameters on `device`; Muon's work is shared by the ranks.

        On a GPU Newton–Schulz runs in bf16, and what the schedule sets are tensors, so that `step` can be captured as a
        CUDA graph.
        """
        groups = group_parameters(named, config)
        for p in groups.untrained.values():
            # Without a gradient: not updated, and left out of the clip's norm.
            p.requires_grad_(False)
        on_gpu = device.type == "cuda"

        def scheduled(value: float) -> float | Tensor:
            return torch.tensor(value, device=device) if on_gpu else value

        muon = Muon(
            groups.muon.values(),
            lr=scheduled(config.muon_lr),
            momentum=scheduled(config.muon_momentum_start),
            steps=config.newton_schulz_steps,
            row_norm=config.muon_row_norm,
            weight_decay=config.muon_weight_decay,
            compute_dtype=torch.bfloat16 if on_gpu else torch.float32,
            world=world,
        )
        adam = torch.optim.AdamW(
            [
                {"params": list(groups.adam.values()), "weight_decay": config.adam_weight_decay},
                {"params": list(groups.adam_no_decay.values()), "weight_decay": 0.0},
            ],
            lr=scheduled(config.adam_lr),
            betas=(config.adam_beta1, config.adam_beta2),
            eps=config.adam_eps,
            fused=True,
            capturable=on_gpu,
        )
        return cls(groups, config, muon, adam)

    def schedule(self, scale: float, momentum: float) -> None:
        """Set both learning rates to `scale` times their base, and Muon's momentum."""
        for group in self.muon.param_groups:
            _set(group, "lr", self.config.muon_lr * scale)
            _set(group, "momentum", momentum)
        for group in self.adam.param_groups:
            _set(group, "lr", self.config.adam_lr * scale)

    def step(self) -> None:
        """Update every trained parameter from its gradient, then zero the gradients in place."""
        self.muon.step()
        self.adam.step()
        self.muon.zero_grad(set_to_none=False)
        self.adam.zero_grad(set_to_none=False)

    def trained(self) -> dict[str, Tensor]:
        """Every parameter that some optimizer updates, by name."""
        return self.groups.muon | self.groups.adam | self.groups.adam_no_decay

    def state(self) -> dict[str, Tensor]:
        """All optimizer state as named tensors: `momentum/NAME`, `exp_avg/NAME`, `exp_avg_sq/NAME`, `step/NAME`."""
        return {
            f"{key}/{name}": value
            for name, p in self.trained().items()
            for key, value in self._of(name).state.get(p, {}).items()
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        """Put back what `state` gave, into the tensors that are there: a captured graph goes on with them.

        Raises `ValueError` on a name or shape that does not fit.
        """
        trained = self.trained()
        kinds: dict[str, set[str]] = {}
        for path, value in state.items():
            key, _, name = path.partition("/")
            shape = torch.Size() if key == "step" else trained[name].shape if name in trained else None
            if value.shape != shape:
                raise ValueError(f"optimizer state {path} fits no parameter")
            kinds.setdefault(name, set()).add(key)
        for name, found in kinds.items():
            if found != ({"momentum"} if name in self.groups.muon else {"exp_avg", "exp_avg_sq", "step"}):
                raise ValueError(f"optimizer state of {name} is {sorted(found)}, not what its optimizer keeps")
        for name, p in trained.items():
            kept = self._of(name).state[p]
            for key in kept.keys() | kinds.get(name, set()):
                path = f"{key}/{name}"
                if path not in state:
                    kept[key].zero_()
                elif key in kept:
                    kept[key].copy_(state[path])
                else:
                    kept[key] = state[path].to(p.device, copy=True)

    def reset_adam_steps(self) -> None:
        """Adam's step counters back to 0, the moments kept (ghost warm-up as published)."""
        for values in self.adam.state.values():
            # Without a step so far there is no counter.
            if "step" in values:
                values["step"].zero_()

    def _of(self, name: str) -> torch.optim.Optimizer:
        return self.muon if name in self.groups.muon else self.adam


def _set(group: dict[str, Any], name: str, value: float) -> None:
    """Set a scheduled value, in place where it is a tensor."""
    if isinstance(group[name], Tensor):
        group[name].fill_(value)
    else:
        group[name] = value
