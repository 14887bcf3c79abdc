"""The language model: embedding, Mamba-2 blocks in a U-Net, head. The artifact contains all of it.

Legend: B batch, T time, D model width, E embedding width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from jepamba.config import ConfigError, Model, Quant
from jepamba.model.attention import AttentionState, SlidingAttention
from jepamba.model.layers import Mlp, QuantLinear, embedding_quantizer, mix_quantizer, vector_quantizer
from jepamba.model.mixer import Mamba2, MixerState
from jepamba.model.output_head import OutputHead
from jepamba.ops.cross_entropy import Losses
from jepamba.ops.norms import add_norm, mix_norm, rms
from jepamba.quant import CachedWeights, IntQuantizer, QuantWeight, Streams

BlockState = MixerState | AttentionState
State = list[BlockState]
"""Recurrent state of a model: one state per block, of constant size."""


class BlockOutput(NamedTuple):
    """Outputs of a block."""

    x_BTD: Tensor
    """Residual stream after the block."""
    x0_BTD: Tensor
    """Embedded input, for the next block."""
    input_BTD: Tensor
    """Input of the block, for a skip. Read from here, its gradient costs no separate pass (see `mix_norm`)."""


Skip = tuple[Tensor, Tensor]
"""Operands of a U-Net skip: an encoder block's output (B, T, D) and the weight per channel (D,)."""


class Activations(NamedTuple):
    """What a forward pass computed for each position."""

    h_BTD: Tensor
    """RMS-normalized output of the last block, which the head reads."""
    x0_BTD: Tensor
    """Embedded input, RMS-normalized."""
    outputs: list[Tensor]
    """Residual stream (B, T, D) after each block."""

    def after(self, layer: int) -> Tensor:
        """Return the RMS-normalized residual stream (B, T, D) after `layer` blocks. 0: h, after all blocks."""
        return rms(self.outputs[layer - 1]) if layer else self.h_BTD


EMBED_STD = 0.02
"""Initial standard deviation of the embedding."""


class Block(nn.Module):
    """x = mix₀·x + mix₁·x0; x += ssm_scale·mixer(rms(x)); in some blocks x += mlp_scale·MLP(rms(x)).

    The mixer is Mamba-2, or sliding-window attention where `model.attention_every` says so.
    """

    def __init__(self, config: Model, quant: Quant, index: int) -> None:
        super().__init__()
        D = config.d_model
        with_mlp = index % config.mlp_every == 0
        mix = torch.zeros(2, D)
        mix[0].fill_(1)
        self.mix = QuantWeight(mix, mix_quantizer(quant))
        self.ssm_scale = QuantWeight(torch.ones(D), vector_quantizer(quant))
        self.mlp_scale = QuantWeight(torch.ones(D), vector_quantizer(quant)) if with_mlp else None
        self.mixer = SlidingAttention(config, quant) if config.has_attention(index) else Mamba2(config, quant)
        self.mlp = Mlp(config, quant) if with_mlp else None

    def forward(
        self,
        x_BTD: Float[Tensor, "B T D"],
        x0_BTD: Float[Tensor, "B T D"],
        skip: Skip | None,
        reset_BT: Bool[Tensor, "B T"] | None,
        state: BlockState | None,
    ) -> tuple[BlockOutput, BlockState]:
        """Return the block's outputs and the mixer's state after the last token.

        `x0_BTD` is the embedded input. The block adds `skip`, if it has one, to its input first.
        """
        x_BTD, normed_BTD, *inputs = mix_norm(x_BTD, x0_BTD, self.mix.effective_weight(), *(skip or ()))
        branch_BTD, state = self.mixer(normed_BTD, self.ssm_scale.effective_weight(), reset_BT, state)
        if self.mlp is not None and self.mlp_scale is not None:
            x_BTD, normed_BTD = add_norm(x_BTD, branch_BTD)
            x_BTD = self.mlp(normed_BTD, self.mlp_scale.effective_weight(), x_BTD)
        else:
            x_BTD = x_BTD + branch_BTD
        return BlockOutput(x_BTD, *inputs), state


class Skips(nn.Module):
    """U-Net skips: a decoder block adds weight · (output of its encoder block).

    Of L blocks the first L//2 are the encoder, and block L//2 + k pairs with block L//2 − 1 − k. The first pair would
    add the last encoder block's output to itself; it exists only with `self_skip`.
    """

    def __init__(self, config: Model, quant: Quant) -> None:
        super().__init__()
        half = config.n_layer // 2
        first = 0 if config.self_skip else 1
        pairs = range(first, half) if config.unet else range(0)
        self.source = {half + k: half - 1 - k for k in pairs}
        self.row = {target: row for row, target in enumerate(self.source)}
        if self.source:
            self.skip_weight = QuantWeight(torch.ones(len(self.source), config.d_model), mix_quantizer(quant))

    def forward(self, index: int, outputs: list[Tensor]) -> Skip | None:
        """Return (output, weight) of the skip into block `index`, if any; `outputs` are those of the earlier blocks."""
        if index not in self.source:
            return None
        return outputs[self.source[index]], self.skip_weight.effective_weight()[self.row[index]]


class LanguageModel(nn.Module):
    """The network. Initial weights come from PyTorch's global generator.

    Raises: `ValueError` if `config.vocab_size` is 0; `ConfigError` if `quant.bit_allocation` does not fit the model.
    """

    def __init__(self, config: Model, quant: Quant) -> None:
        super().__init__()
        if config.vocab_size < 1:
            raise ValueError("config.vocab_size = 0: set it to the tokenizer's vocabulary size")
        self.config, self.quant = config, quant
        embedding = torch.empty(config.vocab_size, config.embed_dim)
        # For a model without values, on the meta device, `normal_` would only import PyTorch's compiler (a second).
        if not embedding.is_meta:
            embedding.normal_().mul_(EMBED_STD)
        self.token_embed = QuantWeight(embedding, embedding_quantizer(quant))
        if config.embed_dim != config.d_model:
            self.embed_proj = QuantLinear(config.embed_dim, config.d_model, quant)
        self.blocks = nn.ModuleList(Block(config, quant, i) for i in range(config.n_layer))
        self.skips = Skips(config, quant)
        self.head = OutputHead(config, quant)
        self.set_bit_allocation(quant.bits_by_name)

    def initial_state(self, batch: int) -> State:
        """Return the state at the start of a stream, for `batch` streams."""
        return [block.mixer.initial_state(batch) for block in self._blocks()]

    def forward(
        self,
        tokens_BT: Int[Tensor, "B T"],
        reset_BT: Bool[Tensor, "B T"] | None = None,
        state: State | None = None,
        layer: int = 0,
    ) -> tuple[Float[Tensor, "B T D"], State]:
        """Return the latents and the recurrent state.

        Arguments:
            tokens_BT: token ids.
            reset_BT: true for tokens that start a document; the state before them is reset.
            state: state after the preceding tokens; None at the start of a stream. A stream in several calls gives the
                latents of one call, up to rounding; T = 1 is one step of generation.
            layer: number of blocks below the latents; 0: all.
        Returns: the RMS-normalized latent of each position (h, with all blocks), and the state after the last token.
        """
        found, new_state = self.activations(tokens_BT, reset_BT, state)
        return found.after(layer), new_state

    def activations(
        self,
        tokens_BT: Int[Tensor, "B T"],
        reset_BT: Bool[Tensor, "B T"] | None = None,
        state: State | None = None,
    ) -> tuple[Activations, State]:
        """Return the activations and the state of the pass that `forward` describes.

        The residual stream is in the compute dtype of the pass on every device: bf16 under bf16 autocast, else the
        dtype of the weights. Sums within a block are fp32 and rounded once (see `jepamba.ops.norms`).
        """
        x_BTD = F.embedding(tokens_BT, self.token_embed.effective_weight())
        if hasattr(self, "embed_proj"):
            x_BTD = self.embed_proj(x_BTD)
        device = x_BTD.device.type
        if torch.is_autocast_enabled(device):
            x_BTD = x_BTD.to(torch.get_autocast_dtype(device))
        x0_BTD = x_BTD = rms(x_BTD)
        outputs: list[Tensor] = []
        new_state: State = []
        for index, block in enumerate(self._blocks()):
            block_state = None if state is None else state[index]
            out, block_state = block(x_BTD, x0_BTD, self.skips(index, outputs), reset_BT, block_state)
            x_BTD, x0_BTD = out.x_BTD, out.x0_BTD
            outputs[-1:] = [out.input_BTD, x_BTD] if outputs else [x_BTD]
            new_state.append(block_state)
        return Activations(rms(x_BTD), x0_BTD, outputs), new_state

    def logits(self, h: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch V"]:
        """Return soft-capped fp32 logits of the next token."""
        out: Tensor = self.head(h, self.token_embed.effective_weight())
        return out

    def loss(self, h_BTD: Float[Tensor, "B T D"], targets_BT: Int[Tensor, "B T"], z_weight: float) -> Losses:
        """Return the mean next-token losses in nats per token; see `Losses`."""
        return self.head.loss(h_BTD.flatten(0, 1), self.token_embed.effective_weight(), targets_BT.flatten(), z_weight)

    def quant_weights(self) -> dict[str, QuantWeight]:
        """Return all weights by artifact name, such as `blocks.3.mixer.in_proj.weight`, in the order of `parameters`.

        The name of the parameter is the artifact name plus `.master`.
        """
        return {name: module for name, module in self.named_modules() if isinstance(module, QuantWeight)}

    @property
    def fake_quantized(self) -> bool:
        """Whether training passes use fake-quantized weights."""
        return self.token_embed.fake_quantized

    def set_fake_quantization(self, on: bool) -> None:
        """Use fake-quantized weights in training passes, or the masters. Evaluation always uses quantized weights."""
        for weight in self.quant_weights().values():
            weight.fake_quantized = on

    def set_bit_allocation(self, bits: Mapping[str, int]) -> None:
        """Set the bits of the named weights' integer quantizers, and record them in `quant`.

        Raises `ConfigError` for a name without an integer quantizer, and for bits out of bounds.
        """
        allocation = {**self.quant.bits_by_name, **bits}
        self.quant = replace(
            self.quant, bit_allocation=tuple(f"{name}={number}" for name, number in allocation.items())
        )
        weights = self.quant_weights()
        for name, number in bits.items():
            quantizer = weights[name].quantizer if name in weights else None
            if not isinstance(quantizer, IntQuantizer):
                raise ConfigError(
                    f"quant.bit_allocation: the model has no weight {name[:80]!r} with an integer quantizer"
                )
            weights[name].quantizer = replace(quantizer, bits=number)

    def cached_weights(self, dtype: torch.dtype) -> CachedWeights:
        """Create the cache of the weights of a step, with matrices in `dtype`. Create it once per run."""
        return CachedWeights(self.quant_weights().values(), dtype)

    def export_weights(self) -> dict[str, Streams]:
        """Encode all weights as the streams of an artifact."""
        return {name: weight.export() for name, weight in self.quant_weights().items()}

    def load_weights(self, values: Mapping[str, Tensor]) -> None:
        """Load decoded weights by artifact name; they are not quantized again.

        Raises `ValueError` for a missing or unknown name, and for another shape.
        """
        weights = self.quant_weights()
        if weights.keys() != values.keys():
            raise ValueError(f"weights do not fit the model: {sorted(weights.keys() ^ values.keys())[:3]}")
        for name, weight in weights.items():
            if weight.master.shape != values[name].shape:
                raise ValueError(f"{name} has shape {tuple(values[name].shape)}, not {tuple(weight.master.shape)}")
            weight.load(values[name])

    def _blocks(self) -> Iterator[Block]:
        for block in self.blocks:
            assert isinstance(block, Block)
            yield block
