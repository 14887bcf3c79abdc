"""The fused operators on a GPU, in bfloat16 and fp32, against plain PyTorch in float64; captured in a CUDA graph."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
import torch
from fused_cases import conv_errors, cross_entropy_errors, epps_pulley_errors, relative
from torch import Tensor

from jepamba.config import Jepa, Model, Quant
from jepamba.jepa import Projections, sample_projections, sigreg
from jepamba.model import LanguageModel
from jepamba.ops.causal_conv import conv_silu
from jepamba.ops.cross_entropy import capped_cross_entropy
from jepamba.ops.cross_entropy.triton import row_losses_triton

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
    # Warnings of the compiler's own making are not this package's.
    pytest.mark.filterwarnings("default"),
]
DTYPES = [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)]


def beyond(worst: dict[str, float], tolerance: float) -> dict[str, float]:
    """What is not within the tolerance."""
    return {name: error for name, error in worst.items() if not error < tolerance}


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES, ids=str)
@pytest.mark.parametrize("learn", [True, False])
@pytest.mark.parametrize(
    ("rows", "vocab", "kind", "cap"),
    [
        (700, 8192, "poly", 15.0),
        (700, 8192, "tanh", 15.0),
        (333, 8191, "off", 4.0),
        (4000, 256, "poly", 15.0),
        (50, 3, "poly", 15.0),
        (300, 16384, "poly", 15.0),
        (90, 65536, "poly", 15.0),
        (40, 20001, "off", 6.0),
    ],
)
def test_cross_entropy(
    rows: int, vocab: int, kind: str, cap: float, learn: bool, dtype: torch.dtype, tolerance: float
) -> None:
    assert beyond(cross_entropy_errors(rows, vocab, kind, cap, dtype, "cuda", learn=learn), tolerance) == {}


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES, ids=str)
@pytest.mark.parametrize(
    ("batch", "length", "channels", "taps", "resets", "history"),
    [
        (4, 1000, 768, 4, 0.01, True),
        (4, 1024, 768, 4, 0.0, False),
        (3, 77, 50, 4, 0.1, True),
        (2, 1, 768, 4, 0.0, True),
        (2, 300, 129, 8, 0.1, True),
        (2, 300, 64, 2, 0.5, False),
    ],
)
def test_convolution(
    batch: int,
    length: int,
    channels: int,
    taps: int,
    resets: float,
    history: bool,
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    worst = conv_errors(batch, length, channels, taps, dtype, "cuda", resets=resets, history=history)
    assert beyond(worst, tolerance) == {}


@pytest.mark.parametrize(
    ("samples", "draws", "directions", "knots", "first"),
    [(64, 64, 672, 17, 0.2), (1, 8192, 128, 17, 0.0), (3, 50, 33, 64, 0.0), (2, 9, 20, 2, 1.0)],
)
def test_epps_pulley(samples: int, draws: int, directions: int, knots: int, first: float) -> None:
    assert beyond(epps_pulley_errors(samples, draws, directions, knots, first, "cuda"), 1e-5) == {}


def head() -> tuple[Callable[[], list[Tensor]], list[Tensor]]:
    """(the whole loss of the head with its gradients, what it reads)."""
    g = torch.Generator("cuda").manual_seed(0)
    features = torch.randn(3000, 336, device="cuda", generator=g).bfloat16().requires_grad_()
    matrix = (torch.randn(8192, 336, device="cuda", generator=g) * 0.05).requires_grad_()
    bias = torch.randn(8192, device="cuda", generator=g).requires_grad_()
    targets = torch.randint(0, 8192, (3000,), device="cuda", generator=g)

    def call() -> list[Tensor]:
        losses = capped_cross_entropy(features, matrix, bias, targets, "poly", 15.0, 1e-4)
        return [*losses, *torch.autograd.grad(losses.total, [features, matrix, bias])]

    return call, [features, matrix, bias]


def convolution() -> tuple[Callable[[], list[Tensor]], list[Tensor]]:
    g = torch.Generator("cuda").manual_seed(0)
    x = torch.randn(4, 512, 768, device="cuda", generator=g).bfloat16().requires_grad_()
    kernel = torch.randn(768, 4, device="cuda", generator=g).requires_grad_()
    bias = torch.randn(768, device="cuda", generator=g).requires_grad_()
    pull = torch.randn(4, 512, 768, device="cuda", generator=g).bfloat16()
    reset = torch.rand(4, 512, device="cuda", generator=g) < 0.01

    def call() -> list[Tensor]:
        y, after = conv_silu(x, None, kernel, bias, reset)
        return [y, after, *torch.autograd.grad(y, [x, kernel, bias], pull)]

    return call, [x, kernel, bias]


def statistic() -> tuple[Callable[[], list[Tensor]], list[Tensor]]:
    g = torch.Generator("cuda").manual_seed(0)
    z = torch.randn(8, 256, 64, device="cuda", generator=g).bfloat16().requires_grad_()
    config = Jepa(sigreg_pool="timestep", sigreg_timesteps=32, sigreg_projections=100)
    projections = sample_projections(config, 64, (8, 256), 0, 0)
    assert projections.indices is not None
    projections = Projections(projections.directions_EM.cuda(), projections.indices.cuda())

    def call() -> list[Tensor]:
        value = sigreg(z, config, projections)
        return [value, *torch.autograd.grad(value, [z])]

    return call, [z]


@pytest.mark.parametrize("what", [head, convolution, statistic])
def test_captured_in_a_graph_and_twice_the_same_bits(
    what: Callable[[], tuple[Callable[[], list[Tensor]], list[Tensor]]],
) -> None:
    """Capture forbids any wait for the device and any copy from the host."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        call, _ = what()
        first = [value.clone() for value in call()]
        for ours, truth in zip(call(), first, strict=True):
            assert torch.equal(ours, truth)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            captured = call()
        graph.replay()
        stream.synchronize()
        for ours, truth in zip(captured, first, strict=True):
            assert torch.equal(ours, truth)


def test_the_head_s_gradients_are_autograd_s() -> None:
    call, leaves = head()
    ours = call()[3:]
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    raw = leaves[0].detach() @ leaves[1].detach().bfloat16().T
    assert raw.dtype == torch.bfloat16
    logits = wide[0] @ wide[1].T + wide[2]
    u = (logits / 15.0).clamp(-2, 2)
    logits = 15.0 * (u * (1 - u**2 / 3 + u**4 / 15)).clamp(-1, 1)
    g = torch.Generator("cuda").manual_seed(0)
    for size in ((3000, 336), (8192, 336), (8192,)):
        torch.randn(size, device="cuda", generator=g)
    targets = torch.randint(0, 8192, (3000,), device="cuda", generator=g)
    loss = torch.nn.functional.cross_entropy(logits, targets) + 1e-4 * logits.logsumexp(1).square().mean()
    for value, truth in zip(ours, torch.autograd.grad(loss, wide), strict=True):
        assert relative(value, truth) < 1e-2


def test_a_broken_logit_breaks_the_loss() -> None:
    raw = torch.randn(30, 8192, device="cuda").bfloat16()
    raw[7, 7000] = float("nan")
    targets = torch.zeros(30, dtype=torch.int64, device="cuda")
    ours = row_losses_triton(raw, torch.zeros(8192, device="cuda"), targets, "poly", 15.0, scale=1.0)
    assert ours.ce_n.isnan().nonzero().flatten().tolist() == [7]


@pytest.mark.parametrize("embed_dim", [48, 64])
@pytest.mark.parametrize("cached", [False, True])
def test_the_residual_stream_is_in_the_compute_dtype(embed_dim: int, cached: bool) -> None:
    torch.manual_seed(0)
    config = Model(vocab_size=50, embed_dim=embed_dim, d_model=64, n_layer=4, headdim=32, d_state=16, chunk_size=16)
    model = LanguageModel(config, Quant(large=64)).cuda().train()
    tokens = torch.randint(50, (2, 100), device="cuda")
    seen: list[Tensor] = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, args, out: seen.extend((args[0], args[1], *out[0])))
    truth, _ = model(tokens)
    assert {value.dtype for value in (*seen, truth)} == {torch.float32}
    seen.clear()
    cache = model.cached_weights(torch.bfloat16)
    cache.compute()
    with cache if cached else contextlib.nullcontext(), torch.autocast("cuda", torch.bfloat16):
        h, _ = model(tokens)
    assert {value.dtype for value in (*seen, h)} == {torch.bfloat16}
    assert (h - truth).norm() < 0.03 * truth.norm()
