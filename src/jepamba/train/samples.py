"""What a report shows of a model: continuations of prompts, during training and at its end, and a scored passage."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from jepamba.artifact.store import Artifact
from jepamba.config import Run
from jepamba.data.tokens import Tokens
from jepamba.decode.cpu import compiling_step
from jepamba.evaluate import score_plain
from jepamba.evaluate.text_score import text_score
from jepamba.generate import generate
from jepamba.model import LanguageModel
from jepamba.text import Tokenizer
from jepamba.train.state import TrainState

TRAINING_TOKENS = 64
"""Most tokens of a sample during training."""
_PASSAGE_BYTES = 1500


def continuations(
    model: LanguageModel, tokenizer: Tokenizer, run: Run, prompts: Sequence[str], tokens: int, temperature: float
) -> list[dict[str, str]]:
    """Continue each prompt by up to `tokens` tokens, at 0.8 times `temperature` and top-p 0.95."""
    settings: dict[str, Any] = {"temperature": 0.8 * temperature, "top_p": 0.95, "seed": run.train.seed}
    return [
        {"prompt": prompt, "text": "".join(generate(model, tokenizer, prompt, tokens, **settings))}
        for prompt in prompts
    ]


def compiling_samples(state: TrainState) -> AbstractContextManager[None]:
    """A context in which another process compiles what `training_sample` runs, if this run trains on a GPU."""
    run = state.run
    sampled = run.train.val_every > 0 and run.eval.sample_tokens > 0 and bool(run.eval.prompts)
    needed = sampled and state.world.is_rank_zero and state.device.type == "cuda" and not run.model.attention_every
    return compiling_step() if needed else nullcontext()


def training_sample(state: TrainState) -> dict[str, str]:
    """Continue the first of `eval.prompts` with the present weights, quantized as in the artifact.

    It runs on a copy on the CPU, so that the state of the training, on a GPU its memory and graphs, stays as it is.
    """
    run = state.run
    with torch.random.fork_rng(devices=[]):
        model = LanguageModel(run.model, run.quant)
    model.to(next(state.model.parameters()).dtype)
    model.set_bit_allocation(state.model.quant.bits_by_name)
    model.load_state_dict(state.model.state_dict())
    tokens = min(run.eval.sample_tokens, TRAINING_TOKENS)
    (sample,) = continuations(model, state.corpus.tokenizer, run, run.eval.prompts[:1], tokens, 1.0)
    return sample


def scored_passage(artifact: Artifact, run: Run, val: Tokens) -> dict[str, Any]:
    """Score the first bytes of the validation text in plain windows.

    Returns: `documents`, lists of pieces (text, bits): the text in whole characters and the bits of its tokens.
    Tokens without text add their bits to the next piece.
    """
    ids = val.read(0, min(len(val), _PASSAGE_BYTES + 1))
    ends_N = val.tokenizer.target_bytes(ids[:-1], ids[1:]).cumsum()
    targets = max(int((ends_N <= _PASSAGE_BYTES).sum()), 1)
    nats_N = torch.empty(targets, dtype=torch.float64)
    score = score_plain(
        artifact.model,
        val,
        run.data.seq_len,
        temperature=artifact.temperature,
        reset=run.data.reset,
        limit=targets,
        nats_N=nats_N,
    )
    found = text_score(score, val, nats_N)
    documents: list[list[tuple[str, float]]] = [[]]
    decoder, bits = codecs.getincrementaldecoder("utf-8")("replace"), 0.0
    for token, text, spent in zip(found.tokens_N.tolist(), found.token_bytes, found.token_bits.tolist(), strict=True):
        if val.tokenizer.separator and token == val.tokenizer.bos_id:
            documents.append([])
        piece, bits = decoder.decode(text), bits + spent
        if piece:
            documents[-1].append((piece, round(bits, 3)))
            bits = 0.0
    return {"documents": documents}
