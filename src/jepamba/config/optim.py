"""The section `[optim]`: optimizers and schedule."""

from __future__ import annotations

from dataclasses import dataclass

from jepamba.config.checks import require


@dataclass(frozen=True)
class Optim:
    """Muon on matrices, AdamW on the rest, and the schedule."""

    muon_lr: float = 0.02
    """Learning rate of Muon."""
    muon_momentum: float = 0.95
    """Momentum of Muon after its warm-up."""
    muon_momentum_start: float = 0.85
    """Momentum of Muon at the first step."""
    muon_momentum_steps: int = 500
    """Steps of the linear momentum warm-up."""
    newton_schulz_steps: int = 3
    """Newton-Schulz iterations."""
    muon_row_norm: bool = True
    """RMS-normalize each row of the Nesterov update before the iterations."""
    muon_weight_decay: float = 0.04
    """Decoupled weight decay of Muon."""
    adam_lr: float = 0.01
    """Learning rate of AdamW."""
    adam_beta1: float = 0.9
    """Decay of the first moment."""
    adam_beta2: float = 0.95
    """Decay of the second moment."""
    adam_eps: float = 1e-8
    """Added to the root of the second moment."""
    adam_weight_decay: float = 0.05
    """Decoupled weight decay of AdamW. A_log, dt_bias and D are exempt unless `decay_ssm`."""
    grad_clip: float = 1.0
    """Maximum global gradient norm; 0: no clipping."""
    warmdown: float = 0.15
    """Final share of the budget over which the learning rate falls linearly to 0."""
    ghost_steps: int = 0
    """Steps of the ghost warm-up, which fills the moments and then restores weights and data position."""
    ghost_keep_moments: bool = True
    """Keep the moments of the ghost warm-up and reset Adam's step counters, as published; off: restore all."""
    decay_ssm: bool = False
    """Decay A_log, dt_bias and D too: defect 3 of the published script."""
    train_conv: bool = True
    """Off: do not train the convolutions, nor count them in the clip: defect 1 of the published script."""

    def __post_init__(self) -> None:
        for name in ("muon_lr", "adam_lr", "muon_weight_decay", "adam_weight_decay", "grad_clip"):
            require(getattr(self, name) >= 0, f"optim.{name} = {getattr(self, name)}: must not be negative")
        for name in ("muon_momentum", "muon_momentum_start", "adam_beta1", "adam_beta2"):
            require(0 <= getattr(self, name) < 1, f"optim.{name} = {getattr(self, name)}: must lie in [0, 1)")
        require(0 <= self.warmdown <= 1, f"optim.warmdown = {self.warmdown}: must lie between 0 and 1")
        require(self.adam_eps > 0, f"optim.adam_eps = {self.adam_eps}: must be positive")
        require(
            self.newton_schulz_steps >= 1, f"optim.newton_schulz_steps = {self.newton_schulz_steps}: must be at least 1"
        )
        for name in ("ghost_steps", "muon_momentum_steps"):
            require(getattr(self, name) >= 0, f"optim.{name} = {getattr(self, name)}: must not be negative")
