"""The section `[quant]`: quantizers of the weights, in training and in the artifact."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, fields
from typing import Literal

from jepamba.config.checks import require


@dataclass(frozen=True)
class Quant:
    """Quantizers of the weights, in training and in the artifact."""

    bits: Literal[2, 3, 4, 5, 6, 7, 8, 32] = 4
    """Bits of the integers for large matrices; 32: no weight is quantized, for comparisons."""
    budget_bytes: int = 0
    """Maximum artifact size in bytes, by 2 to 8 bits for each integer tensor; 0: `bits` for all."""
    budget_after: float = 0.5
    """Share of training at which `budget_bytes` sets the bits, or later, when quantized training begins."""
    bit_allocation: tuple[str, ...] = ()
    """Bits of single tensors, as `blocks.0.mixer.in_proj.weight=5`; `budget_bytes` sets it."""
    large: int = 4096
    """Minimum number of values of an integer matrix; smaller ones are FP8."""
    fp8_scale: Literal["row", "none"] = "row"
    """Scale of FP8: BF16 per row, or none, as in the published script."""
    embedding: Literal["fp8", "int4", "int5", "int6", "int7", "int8"] = "fp8"
    """Format of the embedding and the tie correction."""
    vectors: Literal["bf16", "fp8", "fp8-row", "int8"] = "bf16"
    """Format of per-channel vectors. `fp8`: unscaled for skips and mixes, BF16 for the others, as in the published
    script."""
    qat_fraction: float = 1.0
    """Final share of training with fake quantization; 0: quantize after training."""

    def __post_init__(self) -> None:
        require(0 <= self.qat_fraction <= 1, f"quant.qat_fraction = {self.qat_fraction}: must lie between 0 and 1")
        require(self.large >= 1, f"quant.large = {self.large}: must be at least 1")
        require(self.budget_bytes >= 0, f"quant.budget_bytes = {self.budget_bytes}: must be 0 (none) or more")
        require(0 <= self.budget_after <= 1, f"quant.budget_after = {self.budget_after}: must lie between 0 and 1")
        for item in self.bit_allocation:
            require(
                re.fullmatch(r"[\w.]{1,200}=[2-8]", item) is not None,
                f"quant.bit_allocation: {item[:80]!r} is not of the form blocks.0.mixer.in_proj.weight=5, with "
                "2 to 8 bits",
            )
        for name, count in Counter(item.rpartition("=")[0] for item in self.bit_allocation).items():
            require(count == 1, f"quant.bit_allocation names the tensor {name!r} twice")
        for setting in fields(self):
            value = getattr(self, setting.name)
            require(
                not self.exact or setting.name in ("bits", "qat_fraction") or value == setting.default,
                f"quant.bits = 32 quantizes nothing, so quant.{setting.name} = {value!r} has no effect: leave it out",
            )

    @property
    def exact(self) -> bool:
        """Whether no weight is quantized."""
        return self.bits == 32

    @property
    def bits_by_name(self) -> dict[str, int]:
        """`bit_allocation` as a mapping from tensor name to bits."""
        return {name: int(bits) for name, _, bits in (item.rpartition("=") for item in self.bit_allocation)}
