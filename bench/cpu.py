"""A training step on a CPU: its CPU time and its duration, beside the same step in plain PyTorch and two peers.

    python bench/cpu.py cpu --data.train stdlib [config flags]

Rows: the preset; `pytorch`, the same without C++ kernels; `transformer`, of the same width, depth, vocabulary and about
the same size, with scaled_dot_product_attention; `mamba2`, that of Hugging Face's transformers, if installed. The peers
have random tokens, AdamW, a tied head and bf16 autocast where the preset has it. Rows are interleaved, and figures are
medians. The CPU time of one thread is the measure on a machine that others use too.
Options of its own: --bench-steps N (default 10), --bench-threads 1,2. To compare with another version of the package,
put its `src` first in PYTHONPATH.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable

# As in the package, which is imported after PyTorch here.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepamba.cli.flags import parse_settings
from jepamba.config import Run, with_settings
from jepamba.data import corpus
from jepamba.ops.dispatch import use_kernels
from jepamba.presets import load_preset
from jepamba.train import read_and_resolve
from jepamba.train.device import choose_device
from jepamba.train.state import TrainState
from jepamba.train.step import Trainer


class Transformer(nn.Module):
    """Pre-norm blocks of attention and a squared-ReLU MLP, with a tied head."""

    def __init__(self, width: int, layers: int, vocab: int, hidden: int, head: int) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(vocab, width), head
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width, bias=False) for _ in range(layers))
        self.out = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(layers))
        self.up = nn.ModuleList(nn.Linear(width, hidden, bias=False) for _ in range(layers))
        self.down = nn.ModuleList(nn.Linear(hidden, width, bias=False) for _ in range(layers))
        nn.init.normal_(self.embed.weight, std=0.02)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Return the logits (B, T, V)."""
        x = self.embed(tokens_BT)
        for qkv, out, up, down in zip(self.qkv, self.out, self.up, self.down, strict=True):
            parts = qkv(F.rms_norm(x, x.shape[-1:])).unflatten(-1, (3, -1, self.head)).permute(2, 0, 3, 1, 4)
            query, key, value = parts.unbind()
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
            x = x + out(mixed.transpose(1, 2).flatten(2))
            x = x + down(F.relu(up(F.rms_norm(x, x.shape[-1:]))).square())
        return F.linear(F.rms_norm(x, x.shape[-1:]), self.embed.weight)


def mamba2(run: Run) -> nn.Module | None:
    """The Mamba-2 of Hugging Face's transformers, of the same width, depth and state; None if not installed."""
    try:
        from transformers import Mamba2Config, Mamba2ForCausalLM
    except ImportError:
        return None
    m = run.model
    config = Mamba2Config(
        hidden_size=m.d_model, num_hidden_layers=m.n_layer, vocab_size=m.vocab_size, state_size=m.d_state,
        head_dim=m.headdim, num_heads=2 * m.d_model // m.headdim, expand=2, n_groups=m.ngroups,
        chunk_size=m.chunk_size, tie_word_embeddings=True, use_cache=False,
    )  # fmt: skip
    model: nn.Module = Mamba2ForCausalLM(config)
    return model


def peer_step(model: nn.Module, run: Run, dtype: torch.dtype) -> Callable[[], None]:
    """A training step of a peer: forward, cross-entropy, backward, AdamW."""
    shape = run.train.tokens_per_step // run.data.seq_len, run.data.seq_len
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def step() -> None:
        tokens_BT, targets_BT = torch.randint(0, run.model.vocab_size, (2, *shape)).unbind()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            output = model(tokens_BT)
        logits = output if isinstance(output, Tensor) else output.logits
        F.cross_entropy(logits.flatten(0, 1).float(), targets_BT.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def product_flops(model: nn.Module) -> float:
    """Floating-point operations of the products with weights for a token, forward and backward: 6 per weight."""
    matrices = (p for p in model.parameters() if p.ndim == 2 and min(p.shape) > 8)
    return 6.0 * sum(p.numel() for p in matrices)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset")
    parser.add_argument("--bench-steps", type=int, default=10)
    parser.add_argument("--bench-threads", default="1,2")
    args, flags = parser.parse_known_args()
    run = with_settings(load_preset(args.preset), {"train.device": "cpu", **parse_settings(flags)})
    run, _ = read_and_resolve(run, say=print)
    text, chosen = corpus(run.data), choose_device(run.train)
    trainer, plain = (Trainer(TrainState(run, text, chosen)) for _ in range(2))
    model = trainer.state.model
    config = model.config
    run = with_settings(run, {"model.vocab_size": config.vocab_size})
    models: dict[str, nn.Module | None] = {
        args.preset: model,
        "pytorch": plain.state.model,
        "transformer": Transformer(
            config.d_model, config.n_layer, config.vocab_size, config.d_intermediate, config.headdim
        ),
        "mamba2": mamba2(run),
    }
    rows = {name: peer for name, peer in models.items() if peer is not None}
    steps: dict[str, Callable[[], object]] = {
        name: peer_step(peer, run, chosen.dtype) for name, peer in list(rows.items())[2:]
    }
    steps[args.preset] = lambda: trainer.train_step(0.0)
    steps["pytorch"] = lambda: plain.train_step(0.0)
    print(f"{chosen.why}; torch {torch.__version__}; {run.train.tokens_per_step} tokens a step")
    head = f"{'parameters':>12} {'CPU ms':>7} {'wall ms':>9} {'tokens/s of CPU':>16} {'of wall':>14} GFLOP/s"
    print(f"threads  {'row':12} {head}")
    for threads in map(int, args.bench_threads.split(",")):
        torch.set_num_threads(threads)
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in rows}
        for round_ in range(2 + args.bench_steps):
            for name in rows:
                cpu, wall = time.process_time(), time.perf_counter()
                with use_kernels(name != "pytorch"):
                    steps[name]()
                if round_ >= 2:
                    times[name].append((time.process_time() - cpu, time.perf_counter() - wall))
        for name, peer in rows.items():
            cpu, wall = (statistics.median(values) for values in zip(*times[name], strict=True))
            rate, parameters = run.train.tokens_per_step / cpu, sum(p.numel() for p in peer.parameters())
            print(
                f"{threads:7}  {name:12} {parameters:12,} {cpu * 1e3:7.1f} {wall * 1e3:9.1f} {rate:16,.0f} "
                f"{run.train.tokens_per_step / wall:14,.0f} {rate * product_flops(peer) / 1e9:7.0f}"
            )
            print(json.dumps({"threads": threads, "row": name, "cpu_s": cpu, "wall_s": wall, "parameters": parameters}))


if __name__ == "__main__":
    main()
