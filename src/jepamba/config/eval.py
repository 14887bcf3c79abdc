"""The section `[eval]`: evaluation of the artifact."""

from __future__ import annotations

from dataclasses import dataclass

from jepamba.config.checks import require


@dataclass(frozen=True)
class Eval:
    """Evaluation of the artifact."""

    stride: int = 0
    """Stride of the sliding evaluation at the end of a run, in tokens; 0: plain windows only."""
    sliding_tokens: int = 0
    """Targets of the sliding evaluation; 0: all. A target costs seq_len / stride times the plain one."""
    carry: bool = False
    """Score the text with the state carried too, at the end of a run."""
    calibrate_tokens: int = 65536
    """Training tokens for the calibration of the temperature; 0: temperature 1."""
    tokens_per_batch: int = 0
    """Tokens per forward pass; 0: 65,536 on a GPU, 16,384 on a CPU."""
    diagnostics_tokens: int = 65536
    """Validation tokens for the latent diagnostics; 0: none."""
    sample_tokens: int = 128
    """Generated tokens per sample in the report."""
    prompts: tuple[str, ...] = ("The", "In the beginning", "It is known that")
    """Prompts of the samples in the report."""

    def __post_init__(self) -> None:
        require(self.stride >= 0, f"eval.stride = {self.stride}: 0 (plain windows only) or more")
        for name in ("tokens_per_batch", "sliding_tokens", "calibrate_tokens", "diagnostics_tokens", "sample_tokens"):
            require(getattr(self, name) >= 0, f"eval.{name} = {getattr(self, name)}: must not be negative")
