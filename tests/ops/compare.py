"""What the tests of the operators share: random tensors, errors, the comparison with a function in float64."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
"""Without a GPU, Triton's interpreter runs the kernels. It has no bfloat16 products."""
DTYPES = [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)] if DEVICE == "cuda" else [(torch.float32, 1e-5)]
"""Each dtype with its bound of a relative error."""
ROUNDING = 2.0**-24
"""The rounding error of fp32, relative to the value. That of a sum is relative to the sum of its absolute terms, also
where the terms cancel."""


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(DEVICE, dtype)


def relative(ours: Tensor, truth: Tensor, terms: Tensor | None = None) -> float:
    """Return ‖ours − truth‖ / ‖truth‖, or ‖ours‖ if the truth is 0.

    `terms` are the sums of the absolute values of what `truth` adds up. Their rounding is subtracted from the error.
    """
    assert ours.shape == truth.shape
    ours, truth = ours.detach().double().cpu(), truth.detach().double().cpu()
    error, size = (ours - truth).norm().item(), truth.norm().item()
    if terms is not None:
        error = max(error - ROUNDING * terms.norm().item(), 0.0)
    return error / (size if size > 0 else 1.0)


def beyond(errors: dict[str, float], tolerance: float) -> dict[str, float]:
    """Return the errors that are not below the tolerance."""
    return {name: error for name, error in errors.items() if not error < tolerance}


def compare(
    function: Callable[..., object],
    plain: Callable[..., object],
    inputs: list[Tensor],
    tolerance: float,
    used: tuple[int, ...] | None = None,
) -> None:
    """Compare outputs, and the gradients for random output weights, with those of `plain` in float64.

    Arguments: `used`: which outputs get a gradient; all if None.
    """

    def run(function: Callable[..., object], values: list[Tensor]) -> list[Tensor]:
        leaves = [value.detach().clone().requires_grad_() for value in values]
        result = function(*leaves)
        outputs = list(result) if isinstance(result, tuple) else [result]
        chosen = [outputs[i] for i in used] if used is not None else outputs
        generator = torch.Generator().manual_seed(1)
        loss = sum((o.double() * torch.randn(o.shape, generator=generator).to(o.device)).sum() for o in chosen)
        assert isinstance(loss, Tensor)
        grads = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
        return [*chosen, *grads]

    ours = run(function, inputs)
    truth = run(plain, [value.double() for value in inputs])
    for index, (a, b) in enumerate(zip(ours, truth, strict=True)):
        error = (a.double() - b).norm() / b.norm().clamp_min(1e-30)
        nothing = b.norm() < 1e-12 and a.double().norm() < 1e-6
        assert error < tolerance or nothing, f"value {index}: {error:.2e}"


def check_captured(call: Callable[[], list[Tensor]]) -> None:
    """Check that a second call and a replay of a CUDA graph give the bits of the first call.

    Capture forbids any wait for the device and any copy from the host.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
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
