"""The section `[train]`: budget, batch, precision, checkpoints and logging."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jepamba.config.checks import require


@dataclass(frozen=True)
class Train:
    """Budget, batch, precision and logging."""

    steps: int = 0
    """Budget in optimizer steps; 0: no limit by steps."""
    seconds: float = 0.0
    """Budget in seconds of training; 0: no limit by time. With both, the first to be reached ends the run."""
    tokens_per_step: int = 524288
    """Tokens of one optimizer step, on all processes together."""
    tokens_per_micro: int = 65536
    """Tokens of one forward and backward pass on one process, at most; gradients accumulate until the step is done."""
    seed: int = 42
    """Seed of the weights, the data order and SIGReg's directions."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto: the GPU if there is one."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of activations and matrix products; auto: bf16 on GPU, fp32 on CPU."""
    masters: Literal["fp32", "bf16"] = "fp32"
    """Precision of the kept parts' master weights; bf16 is the submission's defect 2, to measure it."""
    carry_state: bool = False
    """Start each window with the state, detached, that the window before it in the text left (truncated
    back-propagation through time). Each row of a micro-batch then walks along its own stretch of the text; needs
    `data.shuffle` off."""
    compile: bool = False
    """Compile the model's blocks with torch.compile; on a CPU alone. (On a GPU their kernels are fused as it is.)"""
    graph: bool = True
    """On a GPU: capture the work of a micro-batch, and the grids, clip and update of a step, as CUDA graphs."""
    threads: int = 0
    """CPU threads; 0: PyTorch's choice."""
    skip_limit: int = 10
    """Steps whose update a run may skip because the loss or the gradient is not finite (ghost steps count); one more
    ends the run."""
    terms_every: int = 0
    """Steps between measurements of each loss term's own gradient norm; 0: never."""
    val_every: int = 0
    """Steps between validations; 0: only at the end."""
    val_tokens: int = 0
    """Targets of a periodic validation; 0: all (the final one is always whole)."""
    checkpoint_every: int = 0
    """Steps between checkpoints; 0: by time alone."""
    checkpoint_seconds: float = 300.0
    """Seconds between checkpoints; 0: by steps alone."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept."""
    track: Literal["", "trackio", "wandb"] = ""
    """A dashboard that is shown the metrics beside metrics.jsonl; empty: none."""

    def __post_init__(self) -> None:
        require(0 <= self.seed < 1 << 63, f"train.seed = {self.seed}: must lie in 0 … 2^63 − 1")
        for name in (
            "steps",
            "seconds",
            "threads",
            "skip_limit",
            "terms_every",
            "val_every",
            "val_tokens",
            "checkpoint_every",
            "checkpoint_seconds",
        ):
            require(getattr(self, name) >= 0, f"train.{name} = {getattr(self, name)}: must not be negative")
        require(
            self.steps > 0 or self.seconds > 0,
            f"train.steps = {self.steps} and train.seconds = {self.seconds}: no budget; set train.steps or "
            "train.seconds",
        )
        for name in ("tokens_per_micro", "tokens_per_step", "keep_checkpoints"):
            require(getattr(self, name) >= 1, f"train.{name} = {getattr(self, name)}: must be at least 1")
        require(
            self.tokens_per_step % self.tokens_per_micro == 0,
            f"train.tokens_per_step = {self.tokens_per_step} is no multiple of train.tokens_per_micro = "
            f"{self.tokens_per_micro}",
        )
