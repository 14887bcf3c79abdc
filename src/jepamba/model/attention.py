"""Causal attention over a sliding window, as the mixer of a few blocks (`model.attention_every`).

A token reads itself and the W − 1 tokens before it, within its document. The state is the keys and values of the last
W − 1 tokens, so a step of generation takes constant time and memory.

Legend: B batch, T time, D model width, I inner width (H heads × P), W window, S = W − 1 tokens of the state,
A = S + T tokens of a pass, Q queries of a block, N blocks, K = S + Q keys of a block.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from jepamba.config import Model, Quant
from jepamba.model.layers import QuantLinear
from jepamba.ops.norms import rms

ROTARY_BASE = 10_000.0
"""Base of the wavelengths of rotary positions (Su et al. 2021)."""


class AttentionState(NamedTuple):
    """Recurrent state of an attention block."""

    keys_BSI: Tensor
    """Normalized keys of the last tokens, before rotation."""
    values_BSI: Tensor
    valid_BS: Tensor
    """1 for tokens of the current document, 0 for others and before the start of the stream."""


class SlidingAttention(nn.Module):
    """Attention with normalized queries and keys and rotary positions. It has no biases."""

    def __init__(self, config: Model, quant: Quant) -> None:
        super().__init__()
        self.heads, self.inner, self.past = config.heads, config.d_inner, config.attention_window - 1
        self.in_proj = QuantLinear(config.d_model, 3 * self.inner, quant)
        self.out_proj = QuantLinear(self.inner, config.d_model, quant)

    def initial_state(self, batch: int) -> AttentionState:
        """Return the empty state at the start of a stream, for `batch` streams."""
        device = self.in_proj.weight.master.device
        shape = (batch, self.past, self.inner)
        return AttentionState(
            torch.zeros(shape, device=device), torch.zeros(shape, device=device), torch.zeros(shape[:2], device=device)
        )

    def forward(
        self,
        u_BTD: Float[Tensor, "B T D"],
        scale_D: Float[Tensor, " D"],
        reset_BT: Bool[Tensor, "B T"] | None,
        state: AttentionState | None,
    ) -> tuple[Float[Tensor, "B T D"], AttentionState]:
        """Return `scale` times the output, and the state after the last token; `state` None starts a stream."""
        batch, tokens = u_BTD.shape[:2]
        before = self.initial_state(batch) if state is None else state
        query, key, value = self.in_proj(u_BTD).chunk(3, dim=-1)
        query, key = (rms(x.unflatten(-1, (self.heads, -1))).flatten(-2) for x in (query, key))
        keys = torch.cat([before.keys_BSI.to(key.dtype), key], dim=1)
        values = torch.cat([before.values_BSI.to(value.dtype), value], dim=1)
        # Documents are numbered from the state on. What the state has of other documents has a number of its own.
        document_BT = before.valid_BS.new_zeros(batch, tokens)
        if reset_BT is not None:
            document_BT = reset_BT.cumsum(1).to(document_BT.dtype)
        documents = torch.cat([before.valid_BS - 1, document_BT], dim=1)
        mixed_BTI = self._attend(query, keys, values, documents)
        out_BTD: Tensor = self.out_proj(mixed_BTI, scale_D)
        valid_BS = (documents[:, tokens:] == document_BT[:, -1:]).to(before.valid_BS.dtype)
        return out_BTD, AttentionState(keys[:, tokens:], values[:, tokens:], valid_BS)

    def _attend(
        self,
        query_BTI: Float[Tensor, "B T I"],
        keys: Float[Tensor, "B A I"],
        values: Float[Tensor, "B A I"],
        documents: Float[Tensor, "B A"],
    ) -> Float[Tensor, "B T I"]:
        """Attend in blocks of at most W queries, each with its own keys, so that the cost is linear in T."""
        batch, tokens = query_BTI.shape[:2]
        block = min(self.past + 1, tokens)
        padding = -tokens % block
        positions = torch.arange(self.past + tokens, device=query_BTI.device)
        # Only distances matter, so positions can be those within this pass.
        query_BTHP = rotated(query_BTI.unflatten(-1, (self.heads, -1)), positions[self.past :])
        keys_HP = rotated(keys.unflatten(-1, (self.heads, -1)), positions)
        values_HP = values.unflatten(-1, (self.heads, -1))
        q = F.pad(query_BTHP, (0, 0, 0, 0, 0, padding)).unflatten(1, (-1, block))  # (B, N, Q, H, P)
        k, v = (F.pad(x, (0, 0, 0, 0, 0, padding)).unfold(1, self.past + block, block) for x in (keys_HP, values_HP))
        documents = F.pad(documents, (0, padding), value=-2.0)
        key_documents = documents.unfold(1, self.past + block, block)  # (B, N, K)
        query_documents = documents[:, self.past :].unflatten(1, (-1, block))  # (B, N, Q)
        i_Q, j_K = torch.arange(block, device=q.device), torch.arange(self.past + block, device=q.device)
        distance_QK = i_Q[:, None] + self.past - j_K[None, :]
        near_QK = (distance_QK >= 0) & (distance_QK <= self.past)
        visible = near_QK & (query_documents.unsqueeze(-1) == key_documents.unsqueeze(-2))  # (B, N, Q, K)
        mixed = F.scaled_dot_product_attention(
            q.transpose(2, 3).flatten(0, 1),  # (B·N, H, Q, P)
            k.permute(0, 1, 2, 4, 3).flatten(0, 1),  # (B·N, H, K, P)
            v.permute(0, 1, 2, 4, 3).flatten(0, 1),
            attn_mask=visible.flatten(0, 1).unsqueeze(1),
        )
        mixed_BTHP: Tensor = mixed.transpose(1, 2).unflatten(0, (batch, -1)).flatten(1, 2)[:, :tokens]
        return mixed_BTHP.flatten(-2)


def rotated(x_BSHP: Float[Tensor, "B S H P"], positions_S: Tensor) -> Float[Tensor, "B S H P"]:
    """Rotate the pairs (i, i + P/2) of each head by position · ROTARY_BASE^(−2i/P), in fp32."""
    half = x_BSHP.shape[-1] // 2
    rates = ROTARY_BASE ** (-torch.arange(half, device=x_BSHP.device, dtype=torch.float32) / half)
    angle_S1h = (positions_S[:, None].float() * rates).unsqueeze(1)
    cos, sin = angle_S1h.cos(), angle_S1h.sin()
    first, second = x_BSHP.float().split(half, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x_BSHP.dtype)
