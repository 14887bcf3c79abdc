"""Tokens a second of generation beside its peers, in one run.

    python bench/decode.py runs/mine/artifact.jepa [--tokens 128] [--streams 1,64] [--device cpu] [--rounds 5]
    python bench/decode.py submission-bpe          # a preset or TOML file: an untrained model of its shape, quantized
    python bench/decode.py best --data.train DIR --train.steps 5000     # config flags, where it has a dial

- plain: the model's forward pass on one token, as before the fast steps;
- ours: the compiled step on a CPU, one stream; on a GPU a captured graph of step and sampling, any number of streams;
- transformers' Mamba2 on plain PyTorch, fp32, of about as many parameters, if `transformers` is installed;
- on a CPU, one stream, that Mamba2 as a model of llama.cpp with 4-bit weights, if `llama_cpp` and `gguf` are too.

Every contender samples its next token. The rounds alternate between the contenders, and the figures are medians over
the rounds, of wall time and of the CPU time of the process: on a shared machine only the latter compares. The last line
is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from pydoc_data import topics

import torch
from torch import nn

from jepamba.artifact import Artifact, load_artifact, save_artifact
from jepamba.cli.flags import parse_settings
from jepamba.config import with_settings
from jepamba.decode.graph import GraphedStep, sampled_tokens
from jepamba.decode.static_step import StaticStep
from jepamba.evaluate.stored import stored
from jepamba.generate import PromptReader, Sampler, sampled_rows
from jepamba.model import LanguageModel
from jepamba.presets import load_preset
from jepamba.text import train_bpe
from jepamba.train import read_and_resolve

PROMPT = list(range(8, 24))
ENDLESS = 10**9

Step = Callable[[], object]


def artifact_of(name: str, flags: list[str], device: str) -> Artifact:
    """The artifact at the path `name`, or an untrained model of the shape of the preset `name` with config `flags`."""
    if name.endswith(".jepa"):
        return load_artifact(Path(name), device)
    run = with_settings(load_preset(name), parse_settings(flags))
    if run.train.dial or not run.model.vocab_size:
        run, _ = read_and_resolve(run, say=print)
    tokenizer = train_bpe([body for _, body in sorted(topics.topics.items())], min(4096, run.model.vocab_size))
    torch.manual_seed(0)
    model = LanguageModel(run.model, run.quant)
    for parameter in model.parameters():
        if parameter.ndim == 2 and not parameter.any():  # initially zero
            torch.nn.init.uniform_(parameter, -(parameter.shape[1] ** -0.5), parameter.shape[1] ** -0.5)
    with tempfile.TemporaryDirectory() as folder:
        save_artifact(Path(folder, "a.jepa"), model, run, tokenizer)
        return load_artifact(Path(folder, "a.jepa"), device)


def sampler_of(artifact: Artifact) -> Sampler:
    """A sampler of the whole vocabulary, so that every contender samples from as many tokens."""
    sampler = Sampler(artifact.tokenizer, artifact.model, 1.0, 0, 1.0, seed=0)
    sampler.forbidden_V.zero_()
    return sampler


def plain(artifact: Artifact, streams: int) -> Step:
    """The forward pass on one token for each stream."""
    model, sampler = artifact.model, sampler_of(artifact)
    reader = PromptReader(model)
    reader.read(PROMPT)
    assert reader.state is not None
    state = [type(layer)(*(x.expand(streams, *x.shape[1:]).contiguous() for x in layer)) for layer in reader.state]
    device = state[0][0].device
    tokens_B = torch.zeros(streams, dtype=torch.int64, device=device)

    def step() -> None:
        nonlocal state, tokens_B
        with stored(model):
            h_B1D, state = model(tokens_B.unsqueeze(1), None, state)
            uniform_B = torch.rand(streams, dtype=torch.float64).to(device)
            tokens_B = sampler.sample(model.logits(h_B1D[:, 0]), uniform_B)

    return step


def ours(artifact: Artifact, streams: int) -> Step:
    """The fast step."""
    model, sampler = artifact.model, sampler_of(artifact)
    if streams == 1:
        alone = sampled_rows(model, [PROMPT], ENDLESS, [sampler])
        return lambda: next(alone)
    static = StaticStep(model, model.initial_state(streams))
    rows: Iterator[list[int]] = sampled_tokens(
        GraphedStep(static, sampler.sample), lambda count: torch.rand(count, streams, dtype=torch.float64), ENDLESS
    )
    return lambda: next(rows)


def mamba2(artifact: Artifact) -> nn.Module:
    """Mamba2 of the library transformers, with as many layers of the same width as give our number of parameters."""
    from transformers import Mamba2Config, Mamba2ForCausalLM

    config = artifact.model.config

    def sized(layers: int) -> Mamba2Config:
        inner = 2 * config.d_model
        return Mamba2Config(
            vocab_size=config.vocab_size, hidden_size=config.d_model, num_hidden_layers=layers, expand=2,
            head_dim=config.headdim, num_heads=inner // config.headdim, state_size=config.d_state, n_groups=1,
            chunk_size=64, tie_word_embeddings=True,
        )  # fmt: skip

    sizes = [parameters(Mamba2ForCausalLM(sized(layers))) for layers in (1, 2)]
    layers = max(1, round((parameters(artifact.model) - 2 * sizes[0] + sizes[1]) / (sizes[1] - sizes[0])))
    torch.manual_seed(0)
    model: nn.Module = Mamba2ForCausalLM(sized(layers)).to(artifact.model.token_embed.master.device).eval()
    print(f"transformers' Mamba2: {layers} layers, {parameters(model):,} parameters")
    return model


def transformers_mamba2(artifact: Artifact, streams: int) -> Step:
    """Its own step on plain PyTorch."""
    model, sampler = mamba2(artifact), sampler_of(artifact)
    device = artifact.model.token_embed.master.device
    prompt = torch.tensor([PROMPT] * streams, device=device)
    with torch.inference_mode():
        cache = model(prompt, use_cache=True).cache_params
    tokens_B = torch.zeros(streams, dtype=torch.int64, device=device)

    def step() -> None:
        nonlocal tokens_B
        with torch.inference_mode():
            logits_BV = model(tokens_B.unsqueeze(1), cache_params=cache, use_cache=True).logits[:, 0]
            tokens_B = sampler.sample(logits_BV, torch.rand(streams, dtype=torch.float64).to(device))

    return step


def llama_cpp_mamba2(artifact: Artifact, streams: int) -> Step:
    """The same Mamba2 in llama.cpp, 4-bit weights."""
    from llama_peer import reader

    read, sampler = reader(mamba2(artifact), torch.get_num_threads()), sampler_of(artifact)
    logits_BV = read(PROMPT)

    def step() -> None:
        nonlocal logits_BV
        tokens_B = sampler.sample(logits_BV, torch.rand(streams, dtype=torch.float64))
        logits_BV = read(tokens_B.tolist())

    return step


def parameters(model: torch.nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def timed(step: Step, count: int, device: torch.device) -> tuple[float, float]:
    """Seconds of wall time and of CPU time of one of `count` steps."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(count):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - wall) / count, (time.process_time() - cpu) / count


def main() -> None:
    """Parse, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact")
    parser.add_argument("--tokens", type=int, default=128, help="steps of a contender in all rounds")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streams", default="1,64")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args, flags = parser.parse_known_args()
    device = torch.device(args.device)
    artifact = artifact_of(args.artifact, flags, args.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{name}, torch {torch.__version__}; {parameters(artifact.model):,} parameters; {os.cpu_count()} cores")
    makers = {"plain": plain, "ours": ours}
    if find_spec("transformers"):
        makers["transformers Mamba2"] = transformers_mamba2
        if device.type == "cpu" and find_spec("llama_cpp") and find_spec("gguf"):
            makers["llama.cpp Mamba2 Q4"] = llama_cpp_mamba2
    steps: dict[tuple[int, str], Step] = {}
    for streams in map(int, args.streams.split(",")):
        for contender, make in makers.items():
            # The fast step of a CPU and that of llama.cpp have one stream.
            if not (contender in ("ours", "llama.cpp Mamba2 Q4") and streams > 1 and device.type == "cpu"):
                steps[streams, contender] = make(artifact, streams)
    for step in steps.values():
        timed(step, 8, device)
    count = max(1, args.tokens // args.rounds)
    rounds = [{key: timed(step, count, device) for key, step in steps.items()} for _ in range(args.rounds)]
    results = []
    for streams, contender in steps:
        wall, cpu = (statistics.median(r[streams, contender][kind] for r in rounds) for kind in (0, 1))
        results.append(
            {"streams": streams, "contender": contender, "tokens_per_second": streams / wall, "cpu_ms": 1e3 * cpu}
        )
        reference = next(r for r in results if r["streams"] == streams)
        print(
            f"{streams:4} streams  {contender:20} {streams / wall:10.1f} tokens/s  {1e3 * cpu:8.3f} ms CPU a step"
            f"  {streams / wall / float(reference['tokens_per_second']):6.2f} × plain"  # type: ignore[arg-type]
        )
    print(json.dumps({"device": name, "parameters": parameters(artifact.model), "results": results}))


if __name__ == "__main__":
    main()
