"""The recurrent step on a CPU: the stored weights packed once, and one compiled call per token.

Legend: B streams; for the others, see `cpu_kernels`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from jepamba.config import Model, Quant
from jepamba.decode.packed import ABSENT, PackedMatrix, pack, pack_float
from jepamba.evaluate.stored import stored
from jepamba.model import LanguageModel, State
from jepamba.model.language_model import Block
from jepamba.model.layers import QuantLinear
from jepamba.model.mixer import Mamba2, MixerState
from jepamba.quant import QuantWeight

CAPS = ("off", "tanh", "poly")
"""Soft caps by their number in `cpu_kernels.capped`."""


class CpuStep:
    """Feeds `tokens_B` to the model and writes `logits_BV`, one stream after the other; the state is carried in place.

    A step uses one thread. The last bits of its sums depend on the machine and on where its buffers lie in memory.

    Arguments: `model`, one that `supports_cpu_step`; `state`, where the streams stand, copied.
    """

    def __init__(self, model: LanguageModel, state: State) -> None:
        # Imported here because Numba, which it imports, takes half a second.
        from jepamba.decode.cpu_kernels import step

        self._step = step
        streams = len(state[0][0])
        self.tokens_B = torch.zeros(streams, dtype=torch.int64)
        self.logits_BV = torch.zeros(streams, model.config.vocab_size)
        self.ended: set[int] = set()
        """Streams whose next tokens nobody reads: a step leaves them out."""
        with stored(model):
            self._embedding_VE = _array(model.token_embed)
            self._arguments_B = self._pack(model, state)

    def _pack(self, model: LanguageModel, state: State) -> list[tuple[Any, ...]]:
        """Return the arguments of `cpu_kernels.step` after the embedding of the token, for each stream."""
        config, head = model.config, model.head
        blocks = [block for block in model.blocks if isinstance(block, Block)]
        mixers = [block.mixer for block in blocks if isinstance(block.mixer, Mamba2)]
        entries: list[PackedMatrix | None] = []
        for block, mixer in zip(blocks, mixers, strict=True):
            mlp = block.mlp
            linears = [mixer.in_proj, mixer.out_proj]
            linears += [] if mlp is None else [mlp.up, mlp.down, *([mlp.gate] if mlp.gated else [])]
            entries += [pack(linear.weight) for linear in linears] + [None] * (5 - len(linears))
        for owner, name in ((model, "embed_proj"), (head, "embed_proj_rev")):
            linear = getattr(owner, name, None)
            entries.append(pack(linear.weight) if isinstance(linear, QuantLinear) else None)
        if head.tie == 2:
            entries.append(pack_float(head.matrix(model.token_embed.effective_weight()).cpu()))
        else:
            entries.append(pack(head.separate.weight if head.tie == 0 else model.token_embed))
        D = config.d_model
        skip_LD, source_L = np.zeros((len(blocks), D), np.float32), np.full(len(blocks), -1)
        for index, row in model.skips.row.items():
            skip_LD[index] = _array(model.skips.skip_weight)[row]
            source_L[index] = model.skips.source[index]
        states = [layer for layer in state if isinstance(layer, MixerState)]
        history_BLWC = torch.stack([layer.conv_BCW.mT.contiguous() for layer in states], dim=1).float().numpy()
        ssm_BLHPN = torch.stack([layer.ssm_BHPN for layer in states], dim=1).float().numpy()
        weights = (
            *_joined(entries),
            _stacked(block.mix for block in blocks),
            skip_LD,
            source_L,
            _stacked(block.ssm_scale for block in blocks),
            np.stack([np.zeros(D, np.float32) if b.mlp_scale is None else _array(b.mlp_scale) for b in blocks]),
            np.ascontiguousarray(_stacked(mixer.conv_weight for mixer in mixers).transpose(0, 2, 1)),
            _stacked(mixer.conv_bias for mixer in mixers),
            _stacked(mixer.dt_bias for mixer in mixers),
            -np.exp(_stacked(mixer.A_log for mixer in mixers)),
            _stacked(mixer.D for mixer in mixers),
            _stacked(mixer.norm_weight for mixer in mixers),
            _array(head.vocab_bias),
        )
        outputs_LD = np.empty((len(blocks), D), np.float32)
        output = (head.tie == 3, CAPS.index(config.softcap), np.float32(config.cap))
        own = zip(history_BLWC, ssm_BLHPN, self.logits_BV.numpy(), strict=True)
        return [(*weights, history, ssm, outputs_LD, logits, *output) for history, ssm, logits in own]

    def __call__(self) -> None:
        """Run one step."""
        for stream, token in enumerate(self.tokens_B.tolist()):
            if stream not in self.ended:
                self._step(self._embedding_VE[token], *self._arguments_B[stream])


def supports_cpu_step(model: LanguageModel) -> bool:
    """Whether `CpuStep` can run `model`: on a CPU, without attention, and with a Numba that works.

    Numba fails where it is missing, does not fit NumPy, or finds no folder for its cache.
    """
    if model.token_embed.master.device.type != "cpu" or model.config.attention_every:
        return False
    try:
        import jepamba.decode.cpu_kernels  # noqa: F401
    except (ImportError, RuntimeError, OSError):
        return False
    return True


@contextmanager
def compiling_step() -> Iterator[None]:
    """A context in which another process compiles the step into Numba's cache, where every `CpuStep` finds it.

    The compilation takes several seconds of one core. The exit ends a process that still runs.
    """
    command = [sys.executable, "-c", f"import {__name__} as cpu; cpu.compile_step()"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, start_new_session=True) as process:
        try:
            yield
        finally:
            process.kill()


def compile_step() -> None:
    """Compile the step, which is the same function for all models."""
    model = LanguageModel(Model(vocab_size=16, embed_dim=8, d_model=8, n_layer=1, headdim=8, d_state=4), Quant())
    if supports_cpu_step(model):
        CpuStep(model, model.initial_state(1))()


def _array(weight: QuantWeight) -> NDArray[np.float32]:
    value: NDArray[np.float32] = weight.effective_weight().detach().cpu().numpy()
    return value


def _stacked(weights: Iterable[QuantWeight]) -> NDArray[np.float32]:
    return np.stack([_array(weight) for weight in weights])


def _joined(
    matrices: list[PackedMatrix | None],
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Return the table of the matrices (see `cpu_kernels.product`), and their arrays end to end."""
    table, present, word, row = [], [], 0, 0
    for matrix in matrices:
        if matrix is None:
            table.append((ABSENT, 0, 0, 0, 0))
            continue
        present.append(matrix)
        blocks, columns, _ = matrix.words_BKS.shape
        table.append((matrix.kind, blocks, columns, word, row))
        word, row = word + matrix.words_BKS.size, row + matrix.scale_R.size
    return (
        np.array(table, np.int64),
        np.concatenate([matrix.words_BKS.reshape(-1) for matrix in present]),
        np.concatenate([matrix.scale_R for matrix in present]),
        np.concatenate([matrix.offset_R for matrix in present]),
        np.concatenate([matrix.sum_R for matrix in present]),
    )
