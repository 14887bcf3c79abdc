"""The section `[model]`: the language model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from jepamba.config.checks import require


@dataclass(frozen=True)
class Model:
    """The language model. The artifact contains all of it."""

    vocab_size: int = 0
    """Vocabulary size; 0: that of the tokenizer."""
    embed_dim: int = 336
    """Width e of the embedding; projected to `d_model` if they differ."""
    tie: Literal[0, 1, 2, 3] = 1
    """Head: 0 separate; 1 tied; 2 tied plus a learned correction; 3 tied after Linear and GELU."""
    d_model: int = 640
    """Width d of the residual stream."""
    n_layer: int = 10
    """Number of blocks."""
    expand: int = 1
    """Inner width of the mixer as a multiple of `d_model`."""
    d_state: int = 64
    """State size N of each channel."""
    headdim: int = 64
    """Channels P per head."""
    ngroups: int = 1
    """Number of groups; the heads of a group share B and C."""
    d_conv: int = 4
    """Taps of the depthwise causal convolution."""
    mlp: Literal["relu2", "swiglu"] = "relu2"
    """MLP: squared ReLU or SwiGLU."""
    mlp_mult: float = 4.0
    """Hidden width of the MLP as a multiple of `d_model`."""
    mlp_every: int = 2
    """Block i has an MLP if i % mlp_every == 0."""
    unet: bool = True
    """U-Net skips from the first half of the blocks to the second."""
    self_skip: bool = False
    """The published script's first decoder skip, which adds the last encoder block's output to itself."""
    softcap: Literal["poly", "tanh", "off"] = "poly"
    """Soft cap of the logits: degree-5 polynomial, tanh or none."""
    cap: float = 15.0
    """Bound of the capped logits' magnitude."""
    attention_every: int = 0
    """Block i has attention in place of Mamba-2 if i % attention_every == attention_every // 2; 0: none."""
    attention_window: int = 256
    """Tokens that a token reads there, itself included."""
    chunk_size: int = 64
    """Chunk length of the state-space operator; affects speed, and results only by rounding."""

    @property
    def d_inner(self) -> int:
        """Inner width of the mixer, heads × headdim."""
        return self.expand * self.d_model

    @property
    def heads(self) -> int:
        """Number of heads of the mixer."""
        return self.d_inner // self.headdim

    def has_attention(self, index: int) -> bool:
        """Whether block `index` has attention in place of Mamba-2."""
        return self.attention_every > 0 and index % self.attention_every == self.attention_every // 2

    @property
    def d_intermediate(self) -> int:
        """Hidden width of the MLP."""
        return round(self.mlp_mult * self.d_model)

    def __post_init__(self) -> None:
        for name in (
            "embed_dim",
            "d_model",
            "n_layer",
            "expand",
            "d_state",
            "headdim",
            "ngroups",
            "d_conv",
            "mlp_every",
            "attention_window",
            "chunk_size",
        ):
            require(getattr(self, name) >= 1, f"model.{name} = {getattr(self, name)}: must be at least 1")
        require(self.vocab_size >= 0, f"model.vocab_size = {self.vocab_size}: must be 0 (from the tokenizer) or more")
        require(
            self.vocab_size <= 65536, f"model.vocab_size = {self.vocab_size}: tokens have 16 bits, so at most 65,536"
        )
        require(
            self.d_inner % self.headdim == 0,
            f"model.expand * model.d_model = {self.d_inner} is not a multiple of model.headdim = {self.headdim}",
        )
        require(
            self.heads % self.ngroups == 0,
            f"model.ngroups = {self.ngroups} does not divide the {self.heads} heads",
        )
        require(
            math.isfinite(self.mlp_mult) and self.d_intermediate >= 1,
            f"model.mlp_mult = {self.mlp_mult}: the MLP would have no hidden units; use a positive number",
        )
        require(
            self.attention_every >= 0,
            f"model.attention_every = {self.attention_every}: must be 0 (no attention) or more",
        )
        require(
            not self.attention_every or self.headdim % 2 == 0,
            f"model.headdim = {self.headdim}: attention needs an even number of channels per head",
        )
        require(self.cap > 0, f"model.cap = {self.cap}: must be positive; model.softcap = off removes the cap")
        require(
            self.unet or not self.self_skip,
            "model.self_skip needs model.unet: without U-Net skips there is no first decoder skip",
        )
