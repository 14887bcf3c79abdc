"""The language model: embedding, Mamba-2 blocks in a U-Net, head (spec section 1). All of it is kept in the artifact.

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
from jepamba.model.layers import Gridded, Linear, Mlp, embedding_grid, mix_grid, vector_grid
from jepamba.model.mixer import Mamba2, MixerState
from jepamba.ops.cross_entropy.cross_entropy import Losses
from jepamba.ops.norms.norms import add_norm, mix_norm, rms
from jepamba.quant import Grid, IntGrid, Streams

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


class Block(Gridded):
    """x = mix₀·x + mix₁·x0; x += ssm_scale·Mamba2(rms(x)); in some blocks x += mlp_scale·MLP(rms(x))."""

    def __init__(self, config: Model, quant: Quant, index: int) -> None:
        super().__init__()
        D = config.d_model
        self.mixer = Mamba2(config, quant)
        self.add("mix", torch.stack([torch.ones(D), torch.zeros(D)]), mix_grid(quant))
        self.add("ssm_scale", torch.ones(D), vector_grid(quant))
        self.mlp = Mlp(config, quant) if index % config.mlp_every == 0 else None
        if self.mlp is not None:
            self.add("mlp_scale", torch.ones(D), vector_grid(quant))

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
        x_BTD, normed_BTD, *handed = mix_norm(x_BTD, x0_BTD, self.weight("mix"), *(skip or ()))
        branch_BTD, state = self.mixer(normed_BTD, self.weight("ssm_scale"), reset_BT, state)
        if self.mlp is not None:
            x_BTD, normed_BTD = add_norm(x_BTD, branch_BTD)
            branch_BTD = self.mlp(normed_BTD, self.weight("mlp_scale"))
        return BlockOutput(x_BTD + branch_BTD, *handed), state


class Skips(Gridded):
    """The U-Net's skips: decoder block i adds weight·(output of the encoder block that mirrors it).

    With L blocks the first L//2 are the encoder, and block L//2 + k mirrors block L//2 − 1 − k. The first pair would
    add the last encoder block's output to itself; it exists only with `self_skip` (spec section 6, item 4).
    """

    def __init__(self, config: Model, quant: Quant) -> None:
        super().__init__()
        half = config.n_layer // 2
        first = 0 if config.self_skip else 1
        pairs = range(first, half) if config.unet else range(0)
        self.source = {half + k: half - 1 - k for k in pairs}
        self.row = {target: row for row, target in enumerate(self.source)}
        if self.source:
            self.add("skip_weight", torch.ones(len(self.source), config.d_model), mix_grid(quant))

    def forward(self, index: int, outputs: list[Tensor]) -> Skip | None:
        """(output, weight) of the skip into block `index`, if it has one; `outputs` are those of the blocks before."""
        if index not in self.source:
            return None
        return outputs[self.source[index]], self.weight("skip_weight")[self.row[index]]


class LanguageModel(Gridded):
    """The whole network. `config.vocab_size` must be set. Fresh weights come from PyTorch's global generator."""

    def __init__(self, config: Model, quant: Quant) -> None:
        super().__init__()
        if config.vocab_size < 1:
            raise ValueError("the model needs config.vocab_size; take it from the tokenizer")
        self.config, self.quant = config, quant
        embedding = torch.randn(config.vocab_size, config.embed_dim) * EMBED_STD
        self.add("token_embed", embedding, embedding_grid(quant))
        if config.embed_dim != config.d_model:
            self.embed_proj = Linear(config.embed_dim, config.d_model, quant)
        self.blocks = nn.ModuleList(Block(config, quant, i) for i in range(config.n_layer))
        self.skips = Skips(config, quant)
        self.head = Head(config, quant)
        self.set_widths(quant.width_of)

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
        """
        x_BTD = F.embedding(tokens_BT, self.weight("token_embed"))
        if hasattr(self, "embed_proj"):
            x_BTD = self.embed_proj(x_BTD)
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
        out: Tensor = self.head(h, self.weight("token_embed"))
        return out

    def loss(self, h_BTD: Float[Tensor, "B T D"], targets_BT: Int[Tensor, "B T"], z_weight: float) -> Losses:
        """Mean next-token losses of the latents `h`; see `Losses`."""
        return self.head.loss(h_BTD.flatten(0, 1), self.weight("token_embed"), targets_BT.flatten(), z_weight)

    def set_quantized(self, on: bool) -> None:
        """Whether training passes see the grids. Evaluation passes always do."""
        for module in self.gridded():
            module.quantized = on

    def settle(self, dtype: torch.dtype) -> None:
        """Compute every weight of the training passes that follow once, matrices in `dtype`; see `settled`."""
        for module in self.gridded():
            Gridded.settle(module, dtype)

    @contextmanager
    def settled(self) -> Iterator[None]:
        """Training passes inside see the weights that `settle` computed; the parameters get the gradients."""
        for module in self.gridded():
            module.use_settled()
        try:
            yield
        finally:
            for module in self.gridded():
                module.release()

    def watch_inputs(self, on: bool) -> None:
        """Whether forward passes note how large each matrix's inputs are (`quant.scale = hessian` needs it)."""
        for module in self.modules():
            if isinstance(module, Linear):
                module.watching = on and module.weighs

    def set_widths(self, widths: Mapping[str, int]) -> None:
        """Put each named parameter on the integer grid of so many bits, and remember it in `quant`.

        Raises `ConfigError` for a name that is no parameter on an integer grid, or a width out of bounds.
        """
        self.quant = replace(self.quant, widths=tuple(f"{k}={v}" for k, v in {**self.quant.width_of, **widths}.items()))
        places = {path: (module, name) for path, module, name in self.places()}
        for path, width in widths.items():
            module, name = places.get(path, (self, ""))
            grid = module.grids.get(name)
            if not isinstance(grid, IntGrid):
                raise ConfigError(f"quant.widths: the model has no parameter {path[:80]!r} on an integer grid")
            module.grids[name] = replace(grid, width=width)

    def gridded(self) -> Iterator[Gridded]:
        """Every module that holds parameters, this one first."""
        return (module for module in self.modules() if isinstance(module, Gridded))

    def named_grids(self) -> dict[str, Grid]:
        """The grid of every parameter, by its name in `named_parameters`."""
        return {path: module.grids[name] for path, module, name in self.places()}

    def places(self) -> Iterator[tuple[str, Gridded, str]]:
        """Every parameter's name in `named_parameters`, the module that holds it, and its name there."""
        for prefix, module in self.named_modules():
            if isinstance(module, Gridded):
                for name in module.grids:
                    yield f"{prefix}.{name}" if prefix else name, module, name

    def export_weights(self) -> dict[str, Streams]:
        """The encoded streams of every parameter: all of the model that an artifact stores."""
        return {path: module.encode(name) for path, module, name in self.places()}

    def load_decoded(self, weights: Mapping[str, Tensor]) -> None:
        """Put decoded weights in, by parameter name, and use them as they are from now on.

        Raises `ValueError` if a name is missing, unknown, or has another shape.
        """
        own = dict(self.named_parameters())
        if own.keys() != weights.keys():
            raise ValueError(f"weights do not fit the model: {sorted(own.keys() ^ weights.keys())[:3]}")
        for name, parameter in own.items():
            if parameter.shape != weights[name].shape:
                raise ValueError(f"{name} has shape {tuple(weights[name].shape)}, not {tuple(parameter.shape)}")
            parameter.data = weights[name].to(device=parameter.device, dtype=torch.float32)
        for module in self.gridded():
            module.on_grid = True

    def _blocks(self) -> Iterator[Block]:
        for block in self.blocks:
            assert isinstance(block, Block)
            yield block
