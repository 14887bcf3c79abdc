"""The column layout of the output rows of a mixer's input projection.

Legend: B batch, T time, S row of the projection's output (z, x, B, C, dt, then padding), I = d_inner (H heads × P),
G groups, N state, C = I + 2·G·N channels of the convolution.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class MixerSizes(NamedTuple):
    """The sizes of a mixer."""

    heads: int
    headdim: int
    groups: int
    d_state: int
    chunk_size: int

    @property
    def inner(self) -> int:
        """I."""
        return self.heads * self.headdim

    @property
    def channels(self) -> int:
        """C."""
        return self.inner + 2 * self.groups * self.d_state

    def split(self, projected_BTS: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (z, the input of the convolution, raw dt) as views."""
        start, stop = self.inner, self.inner + self.channels
        return projected_BTS[..., :start], projected_BTS[..., start:stop], projected_BTS[..., stop : stop + self.heads]

    def operands(self, xBC_BTC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (x_BTHP, B_BTGN, C_BTGN) as views."""
        x, B, C = xBC_BTC.split([self.inner, self.groups * self.d_state, self.groups * self.d_state], dim=-1)
        by_group = (self.groups, self.d_state)
        return x.unflatten(-1, (self.heads, self.headdim)), B.unflatten(-1, by_group), C.unflatten(-1, by_group)
