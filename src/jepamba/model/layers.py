"""The small pieces that every block is made of: weights that know their grid, the weightless norm, the two MLPs.

Legend: B batch, T time, D model width, M hidden width of an MLP.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from jepamba.config import Model, Quant
from jepamba.ops.dispatch import use_triton
from jepamba.ops.norms.norms import relu2_norm, rms
from jepamba.quant import FloatGrid, Fp8Grid, Grid, IntGrid, Streams, fake


class Gridded(nn.Module):
    """A module whose parameters each have a grid; it reads them through `weight`, never directly.

    In evaluation mode `weight` always gives the stored value, so whatever is scored is what the artifact holds. In
    training mode it does so while `quantized` is on. After `load_decoded` the parameters lie on their grids already
    (`on_grid`), and are used as they are: rounding twice could move them.

    From `use_settled` to `release` training passes read values that `settle` computed once, and whose gradients are the
    parameters' own: a rounding's straight-through gradient is that of the identity.
    """

    matrices: frozenset[str] = frozenset()
    """Parameters that enter matrix products alone: settled in the passes' own dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.grids: dict[str, Grid] = {}
        self.quantized = False
        self.on_grid = False
        self.leaves: dict[str, Tensor] = {}
        self._kept: dict[str, Tensor] = {}

    def add(self, name: str, value: Tensor, grid: Grid) -> None:
        """Register parameter `name` with its initial `value` and its `grid`."""
        self.register_parameter(name, nn.Parameter(value))
        self.grids[name] = grid

    def weight(self, name: str) -> Tensor:
        """Parameter `name` as this pass has to see it: fp32, or while settled a matrix in the passes' dtype."""
        if self.training and name in self.leaves:
            return self.leaves[name]
        value: Tensor = getattr(self, name)
        if self.on_grid or (self.training and not self.quantized):
            return value.float()
        return fake(value.float(), self.grids[name], self.importance(name))

    def encode(self, name: str) -> Streams:
        """The streams of parameter `name`: what an artifact stores of it."""
        value: Tensor = getattr(self, name)
        return self.grids[name].encode(value, self.importance(name))

    def importance(self, name: str) -> Tensor | None:
        """How much an error in each column of parameter `name` matters, where that is known."""
        return None

    @torch.no_grad()
    def settle(self, dtype: torch.dtype) -> None:
        """Compute the weights of the training passes that follow, matrices in `dtype`; `use_settled` puts them in use.

        The tensors stay the same from one call to the next, and so do their gradients (a captured graph needs both).
        """
        self.leaves = {}
        for name, parameter in self.named_parameters(recurse=False):
            value = self.weight(name)
            if name in self._kept:
                self._kept[name].copy_(value)
                continue
            leaf = value.detach().to(dtype if name in self.matrices else torch.float32, copy=True).requires_grad_()
            # Micro-batches are summed in the master's precision.
            leaf.grad_dtype = parameter.dtype
            self._kept[name] = leaf

    def use_settled(self) -> None:
        """Training passes read what `settle` computed, and add to the parameters' gradients, until `release`."""
        for name, leaf in self._kept.items():
            leaf.grad = getattr(self, name).grad
        self.leaves = self._kept

    def release(self) -> None:
        """Hand the gradients of the settled weights to the parameters, and read the parameters themselves again."""
        for name, leaf in self.leaves.items():
            getattr(self, name).grad = leaf.grad
        self.leaves = {}


def matrix_grid(shape: tuple[int, int], quant: Quant) -> Grid:
    """The grid of a weight matrix: integers where it is large, FP8 where it is small (spec section 3)."""
    large = not quant.exact and shape[0] * shape[1] >= quant.large
    return IntGrid(quant.bits, quant.scale, quant.group) if large else small_grid(quant)


def embedding_grid(quant: Quant) -> Grid:
    """The grid of the embedding and the tie correction: FP8, or integers."""
    if quant.exact or quant.embedding == "fp8":
        return small_grid(quant)
    return IntGrid(int(quant.embedding.removeprefix("int")), quant.scale, quant.group)


def small_grid(quant: Quant) -> Grid:
    """The grid of convolutions and small matrices: FP8."""
    return exact_grid() if quant.exact else Fp8Grid(scaled=quant.fp8_scale == "row")


def vector_grid(quant: Quant) -> Grid:
    """The grid of biases, norm weights and residual scales: BF16, or eight bits with a scale."""
    if quant.exact:
        return exact_grid()
    scaled: dict[str, Grid] = {"fp8-row": Fp8Grid(scaled=True), "int8": IntGrid(8)}
    return scaled.get(quant.vectors, FloatGrid(torch.bfloat16))


def mix_grid(quant: Quant) -> Grid:
    """The grid of residual mixes and U-Net skips: as other vectors, or unscaled FP8 as the submission had it (its
    defect 8)."""
    return Fp8Grid(scaled=False) if quant.vectors == "fp8" and not quant.exact else vector_grid(quant)


def exact_grid() -> Grid:
    """The grid of A_log, dt_bias and D: fp32, a few hundred values in all."""
    return FloatGrid(torch.float32)


class Linear(Gridded):
    """y = x Wᵀ without bias, W (out, in) on a grid."""

    matrices = frozenset({"w"})

    input_power: Tensor
    """Mean square of each input, (in,), as noted last; a buffer, there where the grid's scale asks for it."""

    def __init__(self, inputs: int, outputs: int, quant: Quant, *, zero: bool = False) -> None:
        super().__init__()
        value = torch.zeros(outputs, inputs)
        if not zero:
            # PyTorch's own default for nn.Linear: uniform within 1/sqrt(inputs).
            nn.init.uniform_(value, -(inputs**-0.5), inputs**-0.5)
        self.add("w", value, matrix_grid((outputs, inputs), quant))
        self.weighs = quant.scale == "hessian" and isinstance(self.grids["w"], IntGrid)
        self.watching = False
        if self.weighs:
            self.register_buffer("input_power", torch.ones(inputs))

    def forward(
        self, x: Float[Tensor, "*batch inputs"], scale: Float[Tensor, " outputs"] | None = None, rows: int = 0
    ) -> Float[Tensor, "*batch padded"]:
        """scale · (x Wᵀ), W as this pass has to see it; padded with zeros to `rows` outputs, if that is more.

        The scale goes where there is less to multiply: on the outputs of few tokens, on the weights of many.
        """
        self.watch(x)
        tokens = x.numel() // x.shape[-1]
        if self.in_one_piece(x) and (scale is None or self.scales_weights(tokens)):
            from jepamba.ops.linear.linear import cached_linear

            return cached_linear(x, self.weight("w"), scale, rows)
        w = self.weight("w")
        if scale is not None and self.scales_weights(tokens):
            w, scale = (scale.unsqueeze(1) * w).to(w.dtype), None
        if rows > w.shape[0]:
            w = F.pad(w, (0, 0, 0, rows - w.shape[0]))
        out = F.linear(x, w)
        return out if scale is None else scale * out

    def scales_weights(self, tokens: int) -> bool:
        """Whether a scale multiplies the weights of a pass over so many tokens, rather than its outputs."""
        return tokens > self.get_parameter("w").shape[1]

    def in_one_piece(self, x: Tensor) -> bool:
        """Whether this pass takes scale, padding and product, and their gradients, as one function on a GPU."""
        settled = self.training and "w" in self.leaves
        return settled and use_triton(x) and x.dtype == self.leaves["w"].dtype

    def watch(self, x: Float[Tensor, "*batch inputs"]) -> None:
        """While `watching`, note the mean square of each input: the diagonal of the Hessian of ‖x Wᵀ‖² in a row of W,
        which weighs the errors of its columns (as in Frantar et al. 2022, without the off-diagonal)."""
        if self.watching:
            self.input_power.copy_(x.detach().float().square().flatten(0, -2).mean(0))

    def importance(self, name: str) -> Tensor | None:
        """The mean squares of the inputs that `watch` noted last; ones before."""
        return self.input_power if self.weighs else None


class Mlp(nn.Module):
    """down(rms(relu(up x)²)), or down(rms(silu(gate x) · up x)); `down` starts at zero, so a fresh MLP adds nothing."""

    def __init__(self, config: Model, quant: Quant) -> None:
        super().__init__()
        self.gated = config.mlp == "swiglu"
        self.up = Linear(config.d_model, config.d_intermediate, quant)
        if self.gated:
            self.gate = Linear(config.d_model, config.d_intermediate, quant)
        self.down = Linear(config.d_intermediate, config.d_model, quant, zero=True)

    def forward(self, x_BTD: Float[Tensor, "B T D"], scale_D: Float[Tensor, " D"]) -> Float[Tensor, "B T D"]:
        """What the MLP adds to the stream: `scale` times its output."""
        up_BTM = self.up(x_BTD)
        hidden_BTM = rms(F.silu(self.gate(x_BTD)) * up_BTM) if self.gated else relu2_norm(up_BTM)
        out: Tensor = self.down(hidden_BTM, scale_D)
        return out
