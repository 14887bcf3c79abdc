"""Compilation ahead with a GPU that is not there: Triton compiles for an H100 and launches nothing.

A process of its own, because in the tests Triton interprets. Tensors are on the CPU and say that they are on a GPU. A
compilation takes no time and notes the kernel. Prints JSON.

    TRITON_INTERPRET=0 CUDA_VISIBLE_DEVICES= python compile_ahead_cases.py FOLDER
"""

from __future__ import annotations

import contextlib
import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import triton
import triton.compiler
from triton.backends.compiler import GPUTarget

from jepamba.evaluate import score_plain
from jepamba.ops import dispatch
from jepamba.train.state import TrainState
from jepamba.train.step import NotFiniteError, Trainer
from tiny import opened, text_file, tiny

torch.set_num_threads(1)
SIZES = {"model__headdim": 32, "model__d_state": 16, "model__d_model": 64, "data__seq_len": 64}
CASES: dict[str, dict[str, Any]] = {
    "all terms": {"train__val_every": 1},
    "one sample a step": {"jepa__sigreg_sample": "step", "quant__qat_fraction": 1.0, "data__reset": True},
    "late fake quantization": {"quant__qat_fraction": 0.5, "jepa__weight": 0.0, "jepa__sigreg_weight": 0.0},
    "attention": {"model__attention_every": 2},
    "after the latent terms": {"jepa__until": 0.5, "fraction": 0.6},
    "vicreg and moving targets": {"jepa__vicreg_weight": 0.5, "jepa__target_ema": 0.5},
    "bf16, with the fused MLP": {"train__precision": "bf16", "quant__qat_fraction": 0.5},
}
mm = torch.mm
compiled, launched = list[str](), list[int]()
"""The kernels that were compiled, and which of them each launch ran."""


def product(a: torch.Tensor, b: torch.Tensor, out_dtype: torch.dtype | None = None, **out: Any) -> torch.Tensor:
    """A CPU has no product of bf16 with an fp32 result."""
    return mm(a.to(out_dtype), b.to(out_dtype)) if out_dtype else mm(a, b, **out)


class Driver:
    """The parts of Triton's driver that a launch asks."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_(src: Any, target: Any = None, options: Any = None, _env_vars: Any = None) -> Any:
    number = len(compiled)
    compiled.append(src.fn.__name__)
    return types.SimpleNamespace(
        launch_metadata=lambda *args: None,
        run=lambda *args: launched.append(number),
        function=None,
        packed_metadata=None,
    )


@contextlib.contextmanager
def on_gpu() -> Iterator[None]:
    """Tensors say that they are on a GPU."""
    before = torch.cuda.device
    torch.Tensor.is_cuda = property(lambda self: True)
    torch.cuda.device = contextlib.nullcontext
    try:
        yield
    finally:
        del torch.Tensor.is_cuda
        torch.cuda.device = before


def run_of(folder: Path, **settings: Any) -> TrainState:
    # By default the precision depends on the CPU, and with bf16 the kernels of the fused MLP are launched too.
    sizes = {"train__tokens_per_step": 256, "train__tokens_per_micro": 128, "train__precision": "fp32"}
    return opened(tiny(text_file(folder), **{**SIZES, **sizes, **settings}))


def copies(state: TrainState) -> dict[str, Any]:
    found: dict[str, Any] = {name: value.clone() for name, value in state.tensors().items()}
    found |= {f"buffer/{name}": value.clone() for name, value in state.modules.named_buffers()}
    found |= {f"grad/{name}": p.grad for name, p in state.modules.named_parameters()}
    return found | {"metadata": state.metadata(), "fake quantized": state.model.fake_quantized}


def same(before: dict[str, Any], after: dict[str, Any]) -> bool:
    def equal(a: Any, b: Any) -> bool:
        return torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else bool(a == b)

    return before.keys() == after.keys() and all(equal(value, after[name]) for name, value in before.items())


def variants(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """What is compiled ahead, and what the steps, the update and a validation compile after it."""
    # Another model has kernels in common with the one before.
    for name in [name for name in sys.modules if name.startswith("jepamba.ops.")]:
        for kernel in vars(sys.modules[name]).values():
            if isinstance(kernel, triton.runtime.JITFunction):
                kernel.device_caches.clear()
    fraction = settings.get("fraction", 0.0)
    state = run_of(folder, **{name: value for name, value in settings.items() if name != "fraction"})
    trainer = Trainer(state)
    compiled.clear()
    launched.clear()
    with on_gpu():
        state.set_training_mode(fraction)
        before = copies(state)
        trainer._compile_kernels(fraction)
        unchanged = same(before, copies(state)) and not state.optimizers.muon.state
        ahead, runs = len(compiled), len(launched)
        # Without kernels the loss is arbitrary, so the step may skip the update, and the update is called once more.
        for spent in (fraction, 1.0):
            with contextlib.suppress(NotFiniteError):
                trainer.train_step(spent)
            state.optimizers.step()
        if state.run.train.val_every:
            with contextlib.suppress(Exception):
                score_plain(
                    state.model, state.corpus.val, state.run.data.seq_len, reset=state.run.data.reset,
                    limit=state.run.eval.tokens_per_batch, tokens_per_batch=state.run.eval.tokens_per_batch,
                )  # fmt: skip
    return {
        "ahead": sorted(compiled[:ahead]),
        "later": compiled[ahead:],
        "in vain": [name for number, name in enumerate(compiled[:ahead]) if number not in launched],
        "launched ahead": runs,
        "same": unchanged,
    }


def losses(folder: Path, ahead: bool) -> list[float]:
    """The losses of steps in plain PyTorch, with or without a pass before that has no kernels to launch."""
    state = run_of(folder, quant__qat_fraction=0.5)
    trainer = Trainer(state)
    if ahead:
        with on_gpu():
            state.set_training_mode(0.0)
            trainer._compile_kernels(0.0)
    trainer._compiled = True
    return [trainer.train_step(step / 4)["loss"] for step in range(4)]


def main(folder: Path) -> None:
    triton.compiler.compile = compile_
    dispatch.shared_memory = lambda: dispatch.SHARED_MEMORY
    torch.mm = product
    triton.runtime.driver.set_active(Driver())
    print(
        json.dumps(
            {
                "variants": {name: variants(folder, settings) for name, settings in CASES.items()},
                "losses": [losses(folder, ahead) for ahead in (False, True)],
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
