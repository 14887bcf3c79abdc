"""The section `[quant]`: the formats that weights are trained in and stored in."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from jepamba.config.checks import require


@dataclass(frozen=True)
class Quant:
    """The grids that weights are trained on and stored on."""

    bits: Literal[2, 3, 4, 5, 6, 7, 8, 32] = 4
    """Bits of the integer grid for large matrices; 32: nothing at all is rounded, to compare with."""
    scale: Literal["absmax", "clip", "hessian"] = "absmax"
    """Scale of the integer grids: the largest magnitude fits; the one with the least squared error, the largest values
    clipped; or that error weighted by the mean square of each input."""
    group: int = 0
    """Columns of a row that share a scale on the integer grids; 0: the whole row."""
    budget_bytes: int = 0
    """Largest artifact, in bytes: each integer tensor's bits are chosen for it, 2 to 8, where they matter most; 0: all
    have `bits`."""
    budget_after: float = 0.5
    """Share of training after which the bits are chosen; training goes on with them."""
    widths: tuple[str, ...] = ()
    """Bits of single tensors, as `blocks.0.mixer.in_proj.weight=5`; what `budget_bytes` chose is kept here."""
    large: int = 4096
    """A matrix with at least this many values goes on the integer grid, a smaller one on FP8."""
    fp8_scale: Literal["row", "none"] = "row"
    """FP8 with a BF16 scale per row, or unscaled as in the submission."""
    embedding: Literal["fp8", "int4", "int5", "int6", "int7", "int8"] = "fp8"
    """Format of the embedding and the tie correction: FP8, or integers with `scale` and `group`."""
    vectors: Literal["bf16", "fp8", "fp8-row", "int8"] = "bf16"
    """Format of per-channel vectors: BF16, or scaled FP8 or INT8 by row; `fp8` is the submission's, unscaled, of skips
    and mixes alone."""
    qat_fraction: float = 1.0
    """Share of training, at its end, that sees the grids; 1: from the first step, 0: never (rounded after training)."""

    def __post_init__(self) -> None:
        require(0 <= self.qat_fraction <= 1, f"quant.qat_fraction = {self.qat_fraction}: must lie between 0 and 1")
        require(self.large >= 1, f"quant.large = {self.large}: must be at least 1")
        require(0 <= self.group <= 65536, f"quant.group = {self.group}: 0 (a scale a row) to 65,536 columns")
        require(self.budget_bytes >= 0, f"quant.budget_bytes = {self.budget_bytes}: must be 0 (none) or more")
        require(0 <= self.budget_after <= 1, f"quant.budget_after = {self.budget_after}: must lie between 0 and 1")
        for item in self.widths:
            require(
                re.fullmatch(r"[\w.]{1,200}=[2-8]", item) is not None,
                f"quant.widths: {item[:80]!r} is not of the form blocks.0.mixer.in_proj.weight=5, with 2 to 8 bits",
            )
        for name, count in Counter(item.rpartition("=")[0] for item in self.widths).items():
            require(count == 1, f"quant.widths names the tensor {name!r} twice")
        for name in ("scale", "group", "budget_bytes", "widths", "fp8_scale", "embedding", "vectors"):
            value = getattr(self, name)
            require(
                not self.exact or value == type(self).__dataclass_fields__[name].default,
                f"quant.bits = 32 rounds nothing, and quant.{name} = {value!r} has nothing to act on: leave it out",
            )

    @property
    def exact(self) -> bool:
        """Whether nothing is rounded."""
        return self.bits == 32

    @property
    def width_of(self) -> dict[str, int]:
        """`widths` as bits by the tensor's name."""
        return {name: int(bits) for name, _, bits in (item.rpartition("=") for item in self.widths)}
