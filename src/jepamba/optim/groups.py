"""Assign each parameter to an optimizer, and run both optimizers as one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from jepamba.config import Optim
from jepamba.distributed import SINGLE_PROCESS, World
from jepamba.optim.base import AdamW, Optimizer
from jepamba.optim.muon import Muon

NOT_MATRICES = ("token_embed", "conv_weight", "mix", "skip_weight")
"""Two-dimensional parameters that AdamW updates: the embedding, stacks of filters and stacks of vectors. The tie
correction is a matrix of the head, so Muon updates it."""
SSM_SCALARS = ("A_log", "dt_bias", "D")
"""Parameters that set time scales. Weight decay would pull them towards 0, which has no special meaning for them."""


@dataclass
class Groups:
    """Named parameters by optimizer. `untrained` holds the convolutions if `optim.train_conv` is off."""

    muon: dict[str, Tensor] = field(default_factory=dict)
    adam: dict[str, Tensor] = field(default_factory=dict)
    adam_no_decay: dict[str, Tensor] = field(default_factory=dict)
    untrained: dict[str, Tensor] = field(default_factory=dict)


def group_parameters(named: Iterable[tuple[str, Tensor]], config: Optim) -> Groups:
    """Put each parameter into one group: Muon for matrices (those of the JEPA heads included), AdamW for the rest."""
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
    """Muon and AdamW behind one interface: schedule, step, and state for a checkpoint."""

    groups: Groups
    config: Optim
    muon: Muon
    adam: AdamW

    @classmethod
    def build(
        cls,
        named: Iterable[tuple[str, Tensor]],
        config: Optim,
        device: torch.device,
        world: World = SINGLE_PROCESS,
        dtype: torch.dtype = torch.float32,
    ) -> Optimizers:
        """Create optimizers for the named parameters on `device`. Muon distributes its work over the ranks.

        Newton–Schulz runs in bf16 on a GPU, and in `dtype`, that of the passes, on a CPU. On a GPU, learning rates and
        momentum are tensors, so that a CUDA graph can capture `step`.
        """
        groups = group_parameters(named, config)
        for p in groups.untrained.values():
            # A parameter without a gradient also stays out of the norm for gradient clipping.
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
            compute_dtype=torch.bfloat16 if on_gpu else dtype,
            world=world,
        )
        adam = AdamW(
            [
                {"params": list(groups.adam.values()), "weight_decay": config.adam_weight_decay},
                {"params": list(groups.adam_no_decay.values()), "weight_decay": 0.0},
            ],
            lr=scheduled(config.adam_lr),
            betas=(config.adam_beta1, config.adam_beta2),
            eps=config.adam_eps,
            capturable=on_gpu,
        )
        return cls(groups, config, muon, adam)

    def schedule(self, scale: float, momentum: float) -> None:
        """Set both learning rates to `scale` times their configured values, and Muon's momentum to `momentum`."""
        for group in self.muon.param_groups:
            _set(group, "lr", self.config.muon_lr * scale)
            _set(group, "momentum", momentum)
        for group in self.adam.param_groups:
            _set(group, "lr", self.config.adam_lr * scale)

    def step(self) -> None:
        """Update every trained parameter, then zero the gradients in place."""
        self.muon.step()
        self.adam.step()
        self.muon.zero_grad()
        self.adam.zero_grad()

    def trained(self) -> dict[str, Tensor]:
        """Return the parameters that an optimizer updates, by name."""
        return self.groups.muon | self.groups.adam | self.groups.adam_no_decay

    def state(self) -> dict[str, Tensor]:
        """Return the optimizer state as tensors `momentum/NAME`, `exp_avg/NAME`, `exp_avg_sq/NAME` and `step/NAME`."""
        return {
            f"{key}/{name}": value
            for name, p in self.trained().items()
            for key, value in self._optimizer(name).state.get(p, {}).items()
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        """Load the result of `state`. Copies into existing tensors, because a captured CUDA graph refers to them.

        Raises `ValueError` for a name or shape that matches no parameter.
        """
        trained = self.trained()
        keys_by_name: dict[str, set[str]] = {}
        for path, value in state.items():
            key, _, name = path.partition("/")
            shape = torch.Size() if key == "step" else trained[name].shape if name in trained else None
            if value.shape != shape:
                raise ValueError(f"optimizer state {path} matches no parameter")
            keys_by_name.setdefault(name, set()).add(key)
        for name, keys in keys_by_name.items():
            if keys != ({"momentum"} if name in self.groups.muon else {"exp_avg", "exp_avg_sq", "step"}):
                raise ValueError(f"optimizer state of {name} is {sorted(keys)}, but its optimizer has other keys")
        for name, p in trained.items():
            current = self._optimizer(name).state[p]
            for key in current.keys() | keys_by_name.get(name, set()):
                path = f"{key}/{name}"
                if path not in state:
                    current[key].zero_()
                elif key in current:
                    current[key].copy_(state[path])
                else:
                    current[key] = state[path].to(p.device, copy=True)

    def reset_adam_steps(self) -> None:
        """Set Adam's step counters to 0 and keep its moments (the published form of ghost warm-up)."""
        for values in self.adam.state.values():
            # AdamW creates the counter at its first step.
            if "step" in values:
                values["step"].zero_()

    def _optimizer(self, name: str) -> Optimizer:
        return self.muon if name in self.groups.muon else self.adam


def _set(group: dict[str, Any], name: str, value: float) -> None:
    """Set a scheduled value; a tensor is changed in place."""
    if isinstance(group[name], Tensor):
        group[name].fill_(value)
    else:
        group[name] = value
