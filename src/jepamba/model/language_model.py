"""The language model: embedding, Mamba-2 blocks in a U-Net, head. All of it is kept in the artifact.

Legend: B batch, T time, D model width, E embedding width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from jepamba.config import ConfigError, Model, Quant
from jepamba.model.head import Head
from jepamba.model.layers import Mlp, QuantLinear, embedding_quantizer, mix_quantizer, vector_quantizer
from jepamba.model.mixer import Mamba2, MixerState
from jepamba.ops.cross_entropy import Losses
from jepamba.ops.norms import add_norm, mix_norm, rms
from jepamba.quant import CachedWeights, IntQuantizer, QuantWeight, Streams

State = list[MixerState]
"""The carried state of a model: one `MixerState` per block, constant in size however long the stream."""


class BlockOutput(NamedTuple):
    """What a block hands on."""

    x_BTD: Tensor
    """Its output."""
    x0_BTD: Tensor
    """The embedded input, for the next block."""
    before_BTD: Tensor
    """Its input, for a skip: read from here, its gradient costs no pass of its own (see `mix_norm`)."""


Skip = tuple[Tensor, Tensor]
"""What a U-Net skip brings: an encoder block's output (B, T, D) and its per-channel weight (D,)."""

EMBED_STD = 0.02
"""Initial standard deviation of the embedding."""


class Block(nn.Module):
    """x = mix₀·x + mix₁·x0; x += ssm_scale·Mamba2(rms(x)); in some blocks x += mlp_scale·MLP(rms(x))."""

    def __init__(self, config: Model, quant: Quant, index: int) -> None:
        super().__init__()
        D = config.d_model
        with_mlp = index % config.mlp_every == 0
        self.mix = QuantWeight(torch.stack([torch.ones(D), torch.zeros(D)]), mix_quantizer(quant))
        self.ssm_scale = QuantWeight(torch.ones(D), vector_quantizer(quant))
        self.mlp_scale = QuantWeight(torch.ones(D), vector_quantizer(quant)) if with_mlp else None
        self.mixer = Mamba2(config, quant)
        self.mlp = Mlp(config, quant) if with_mlp else None

    def forward(
        self,
        x_BTD: Float[Tensor, "B T D"],
        x0_BTD: Float[Tensor, "B T D"],
        skip: Skip | None,
        reset_BT: Bool[Tensor, "B T"] | None,
        state: MixerState | None,
    ) -> tuple[BlockOutput, MixerState]:
        """The stream after this block and what it was before, and the mixer's state after the last token.

        x0 is the embedded input; `skip`, where the block has one, is added before all else.
        """
        x_BTD, normed_BTD, *handed = mix_norm(x_BTD, x0_BTD, self.mix.effective_weight(), *(skip or ()))
        branch_BTD, state = self.mixer(normed_BTD, self.ssm_scale.effective_weight(), reset_BT, state)
        if self.mlp is not None and self.mlp_scale is not None:
            x_BTD, normed_BTD = add_norm(x_BTD, branch_BTD)
            branch_BTD = self.mlp(normed_BTD, self.mlp_scale.effective_weight())
        return BlockOutput(x_BTD + branch_BTD, *handed), state


class Skips(nn.Module):
    """The U-Net's skips: decoder block i adds weight·(output of the encoder block that mirrors it).

    With L blocks the first L//2 are the encoder, and block L//2 + k mirrors block L//2 − 1 − k. The first pair would
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
        """(output, weight) of the skip into block `index`, if it has one; `outputs` are those of the blocks before."""
        if index not in self.source:
            return None
        return outputs[self.source[index]], self.skip_weight.effective_weight()[self.row[index]]


class LanguageModel(nn.Module):
    """The whole network. `config.vocab_size` must be set. Fresh weights come from PyTorch's global generator."""

    def __init__(self, config: Model, quant: Quant) -> None:
        super().__init__()
        if config.vocab_size < 1:
            raise ValueError("the model needs config.vocab_size; take it from the tokenizer")
        self.config, self.quant = config, quant
        embedding = torch.randn(config.vocab_size, config.embed_dim) * EMBED_STD
        self.token_embed = QuantWeight(embedding, embedding_quantizer(quant))
        if config.embed_dim != config.d_model:
            self.embed_proj = QuantLinear(config.embed_dim, config.d_model, quant)
        self.blocks = nn.ModuleList(Block(config, quant, i) for i in range(config.n_layer))
        self.skips = Skips(config, quant)
        self.head = Head(config, quant)
        self.set_bit_allocation(quant.width_of)

    def initial_state(self, batch: int) -> State:
        """The state at a stream's start, for `batch` streams."""
        return [block.mixer.initial_state(batch) for block in self._blocks()]

    def forward(
        self,
        tokens_BT: Int[Tensor, "B T"],
        reset_BT: Bool[Tensor, "B T"] | None = None,
        state: State | None = None,
    ) -> tuple[Float[Tensor, "B T D"], State]:
        """(h, state): the final latent of every position, RMS-normalised, and the state after the last token.

        `reset_BT` marks tokens that start a document: nothing before them is seen. `state` continues a stream: a
        sequence cut anywhere and carried gives the h of the whole, up to rounding; T = 1 is a step of generation.

        The residual stream and h are in the compute dtype of the pass, on every device: bf16 under bf16 autocast, else
        the weights' own. Sums within a block are fp32 and rounded once (see `jepamba.ops.norms.norms`).
        """
        x_BTD = F.embedding(tokens_BT, self.token_embed.effective_weight())
        if hasattr(self, "embed_proj"):
            x_BTD = self.embed_proj(x_BTD)
        device = x_BTD.device.type
        if torch.is_autocast_enabled(device):
            x_BTD = x_BTD.to(torch.get_autocast_dtype(device))
        x0_BTD = x_BTD = rms(x_BTD)
        outputs: list[Tensor] = []
        carried: State = []
        for index, block in enumerate(self._blocks()):
            before = None if state is None else state[index]
            stream, after = block(x_BTD, x0_BTD, self.skips(index, outputs), reset_BT, before)
            x_BTD, x0_BTD = stream.x_BTD, stream.x0_BTD
            outputs[-1:] = [stream.before_BTD, x_BTD] if outputs else [x_BTD]
            carried.append(after)
        return rms(x_BTD), carried

    def logits(self, h: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch V"]:
        """Soft-capped fp32 logits of the next token."""
        out: Tensor = self.head(h, self.token_embed.effective_weight())
        return out

    def loss(self, h_BTD: Float[Tensor, "B T D"], targets_BT: Int[Tensor, "B T"], z_weight: float) -> Losses:
        """Mean next-token losses of the latents `h`; see `Losses`."""
        return self.head.loss(h_BTD.flatten(0, 1), self.token_embed.effective_weight(), targets_BT.flatten(), z_weight)

    def weights(self) -> dict[str, QuantWeight]:
        """Every weight by its name in an artifact, such as `blocks.3.mixer.in_proj.weight` or `blocks.3.mixer.A_log`.

        The order is that of `parameters`; the parameter's own name has `.master` behind it.
        """
        return {name: module for name, module in self.named_modules() if isinstance(module, QuantWeight)}

    @property
    def fake_quantized(self) -> bool:
        """Whether training passes see fake-quantized weights."""
        return self.token_embed.fake_quantized

    def set_fake_quantization(self, on: bool) -> None:
        """Let training passes see fake-quantized weights, or the masters. Evaluation always sees the stored values."""
        for weight in self.weights().values():
            weight.fake_quantized = on

    def set_bit_allocation(self, bits: Mapping[str, int]) -> None:
        """Give each named weight an integer quantizer of so many bits, and remember it in `quant`.

        Raises `ConfigError` for a name without an integer quantizer, or bits out of bounds.
        """
        allocation = {**self.quant.width_of, **bits}
        self.quant = replace(self.quant, widths=tuple(f"{name}={number}" for name, number in allocation.items()))
        weights = self.weights()
        for name, number in bits.items():
            quantizer = weights[name].quantizer if name in weights else None
            if not isinstance(quantizer, IntQuantizer):
                raise ConfigError(f"quant.widths: the model has no weight {name[:80]!r} with an integer quantizer")
            weights[name].quantizer = replace(quantizer, bits=number)

    def cached_weights(self, dtype: torch.dtype) -> CachedWeights:
        """A cache for the weights of a step's training passes, matrices in `dtype`; to be made once and kept."""
        return CachedWeights(self.weights().values(), dtype)

    @contextmanager
    def calibrate_inputs(self) -> Iterator[None]:
        """Forward passes inside record the input statistics that the quantizers of `quant.scale = hessian` need."""
        layers = [module for module in self.modules() if isinstance(module, QuantLinear)]
        for layer in layers:
            layer.calibrating = True
        try:
            yield
        finally:
            for layer in layers:
                layer.calibrating = False

    def export_weights(self) -> dict[str, Streams]:
        """The encoded streams of every weight: all of the model that an artifact stores."""
        return {name: weight.export() for name, weight in self.weights().items()}

    def load_weights(self, values: Mapping[str, Tensor]) -> None:
        """Load decoded weights, by their names in the artifact, and use them as they are from now on.

        Raises `ValueError` if a name is missing, unknown, or has another shape.
        """
        weights = self.weights()
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
