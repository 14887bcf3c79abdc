"""Compiles every kernel of one training step for an H100 that is not there, and prints the shared memory of each.

The published configuration with the state of 128 that `best` takes, in bf16, with fewer layers. A process of its own,
because in the tests Triton interprets. Tensors are on the CPU and say that they are on a GPU; nothing is launched.
Prints JSON.

    TRITON_INTERPRET=0 CUDA_VISIBLE_DEVICES= python kernels_fit_cases.py FOLDER
"""

from __future__ import annotations

import contextlib
import json
import sys
import types
from pathlib import Path
from typing import Any

import torch
import triton
import triton.compiler

import jepamba
from compile_ahead_cases import Driver, on_gpu, product
from jepamba.config import build, flatten, merge, to_dict
from jepamba.ops import dispatch
from jepamba.presets import load_preset
from jepamba.train.step import NotFiniteError, Trainer
from tiny import opened, text_file

shared: dict[str, int] = {}
"""The largest shared memory of a variant of each kernel, in bytes."""
compile_for = triton.compiler.compile


def compile_(src: Any, target: Any = None, options: Any = None, _env_vars: Any = None) -> Any:
    name = f"{src.fn.__module__}.{src.fn.__name__}".removeprefix("jepamba.ops.")
    kernel = compile_for(src, target=target, options=options)
    shared[name] = max(shared.get(name, 0), kernel.metadata.shared)
    return types.SimpleNamespace(
        launch_metadata=lambda *args: None, run=lambda *args: None, function=None, packed_metadata=None
    )


def main(folder: Path) -> None:
    triton.compiler.compile = compile_
    triton.runtime.driver.set_active(Driver())
    dispatch.shared_memory = lambda: dispatch.SHARED_MEMORY
    torch.mm = product
    text, tokenizer = str(text_file(folder)), folder / "8192.model"
    tokenizer.write_bytes(jepamba.load().tokenizer.serialize())
    settings = flatten(to_dict(load_preset("submission-bpe"))) | {"model.n_layer": 2, "model.d_state": 128}
    given = {"data.train": text, "data.val": text, "data.tokenizer": str(tokenizer), "train.precision": "bf16"}
    windows = dict.fromkeys(("train.tokens_per_step", "train.tokens_per_micro"), 2 * settings["data.seq_len"])
    trainer = Trainer(opened(build(merge(settings, {**given, **windows, "train.steps": 2, "train.seconds": 0.0}))))
    with on_gpu():
        for fraction in (0.0, 1.0):  # with and without fake quantization, if it begins late
            trainer.state.set_training_mode(fraction)
            with contextlib.suppress(NotFiniteError):
                trainer.train_step(fraction)
            trainer.state.optimizers.step()
    print(json.dumps(shared))


if __name__ == "__main__":
    torch.set_num_threads(2)
    main(Path(sys.argv[1]))
