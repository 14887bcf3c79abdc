"""Text generation by recurrent decoding: one token at a time, with a state of constant size.

Legend: B streams, T tokens, D d_model, V vocabulary, N random numbers of a stream.
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from jepamba.decode.cpu import CpuStep, supports_cpu_step
from jepamba.decode.graph import GraphedStep, sampled_tokens
from jepamba.decode.static_step import StaticStep
from jepamba.errors import DivergedError, UserError
from jepamba.evaluate.stored import stored
from jepamba.model import LanguageModel, State
from jepamba.text import Tokenizer

_PROMPT_CHUNK = 1024
"""Tokens of the prompt in one forward pass."""
_STREAMS = 256
"""Most streams at a time: each has a state of up to some megabytes."""


def generate(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: str,
    tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
) -> Iterator[str]:
    """Continue `prompt` by up to `tokens` tokens. Yields the new text in pieces, without the prompt.

    The prompt is the beginning of a document. The text ends when the model samples BOS, which starts another document.
    Other control tokens are never sampled. A piece consists of whole characters. Invalid UTF-8 becomes U+FFFD.

    Arguments:
        temperature: Divisor of the logits. 0: always the most likely token. The temperature of an artifact is not
            included; the caller multiplies by it.
        top_k: Sample only from the `top_k` most likely tokens. 0: all.
        top_p: Sample only from the smallest set of most likely tokens whose total probability is at least `top_p`.
        seed: Seed of a private generator. The same seed gives the same text; global random state does not change.

    Raises `UserError`, at the call, for a value out of range, and for an empty prompt if the tokenizer has no token
    that starts a document.
    """
    ids, sampler = _start(model, tokenizer, prompt, tokens, temperature, top_k, top_p, seed)
    rows = sampled_rows(model, [ids], tokens, [sampler])
    return _text(tokenizer, ids[-1], (token for (token,) in rows))


def generate_many(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
) -> list[str]:
    """Continue each of `prompts`, the i-th (from 0) up to rounding as `generate` does with the seed `seed + i`.

    All streams take each step together. Arguments and errors: see `generate`.
    """
    starts = [
        _start(model, tokenizer, prompt, tokens, temperature, top_k, top_p, seed + index)
        for index, prompt in enumerate(prompts)
    ]
    texts = []
    for first in range(0, len(starts), _STREAMS):
        prompts_ids, samplers = zip(*starts[first : first + _STREAMS], strict=True)
        end = tokenizer.bos_id if tokenizer.separator else None
        rows = list(sampled_rows(model, prompts_ids, tokens, samplers, end))
        for stream, ids in enumerate(prompts_ids):
            texts.append("".join(_text(tokenizer, ids[-1], (row[stream] for row in rows))))
    return texts


def _start(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: str,
    tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int,
) -> tuple[list[int], Sampler]:
    """Check the arguments of `generate`. Returns the ids of the prompt, and the sampler."""
    if tokens < 0:
        raise UserError(f"tokens = {tokens}: must be 0 or more")
    if not 0 <= temperature < math.inf:
        raise UserError(f"temperature = {temperature:g}: must be 0 (always the most likely token) or more")
    if top_k < 0:
        raise UserError(f"top_k = {top_k}: must be 0 (all tokens) or more")
    if not 0 < top_p <= 1:
        raise UserError(f"top_p = {top_p:g}: must be above 0 and at most 1")
    if not -(2**63) <= seed < 2**64:
        raise UserError(f"seed = {seed}: must fit in 64 bits")
    if tokenizer.vocab_size > model.config.vocab_size:
        raise UserError(f"the tokenizer has {tokenizer.vocab_size} symbols, the model only {model.config.vocab_size}")
    ids = prompt_ids(prompt, tokenizer)
    if not ids:
        raise UserError(
            "empty prompt: this tokenizer has no token that starts a document, so the prompt needs some text"
        )
    return ids, Sampler(tokenizer, model, temperature, top_k, top_p, seed)


def prompt_ids(prompt: str, tokenizer: Tokenizer) -> list[int]:
    """Return the tokens of `prompt` as the beginning of a document. Without any, the model has nothing to continue."""
    start = [tokenizer.bos_id] if tokenizer.separator else []
    return [*start, *tokenizer.encode(prompt).tolist()]


class Sampler:
    """Samples the next tokens from their logits. For the arguments, see `generate`."""

    def __init__(
        self, tokenizer: Tokenizer, model: LanguageModel, temperature: float, top_k: int, top_p: float, seed: int
    ) -> None:
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        # On the CPU, so that a seed gives the same random numbers for every device of the model.
        self.random = torch.Generator().manual_seed(seed)
        forbidden_V = torch.zeros(model.config.vocab_size, dtype=torch.bool)
        forbidden_V[tokenizer.vocab_size :] = True
        forbidden_V[[i for i in tokenizer.control_ids if i != tokenizer.bos_id]] = True
        self.forbidden_V = forbidden_V.to(model.token_embed.master.device)

    def __call__(self, logits_V: Float[Tensor, " V"]) -> int:
        """Sample the next token."""
        if not logits_V.isfinite().all():
            raise DivergedError
        uniform_B = self.uniforms(1)[0].to(logits_V.device)
        return int(self.sample(logits_V.unsqueeze(0), uniform_B))

    def uniforms(self, count: int) -> Float[Tensor, "N B"]:
        """Return the next `count` random numbers in [0, 1) of one stream, on the CPU, in fp64."""
        return torch.rand(count, 1, dtype=torch.float64, generator=self.random)

    def sample(self, logits_BV: Float[Tensor, "B V"], uniform_B: Float[Tensor, " B"]) -> Int[Tensor, " B"]:
        """Return the tokens at the quantiles `uniform_B` of the distributions, in the order of the vocabulary.

        It never reads a value on the host, so it can be part of a CUDA graph.
        """
        logits_BV = logits_BV.float().masked_fill(self.forbidden_V, -math.inf)
        if self.temperature == 0:
            return logits_BV.argmax(-1)
        # Subtracting the maximum first prevents overflow at a tiny temperature.
        p_BV = (logits_BV - logits_BV.amax(-1, keepdim=True)).double().div(self.temperature).float().softmax(-1)
        if self.top_k > 0 or self.top_p < 1:
            sorted_BV, order_BV = p_BV.sort(dim=-1, descending=True, stable=True)
            if self.top_k > 0:
                sorted_BV[:, self.top_k :] = 0
            # A token stays if the tokens before it have less mass than top_p, so the first one always stays.
            sorted_BV = sorted_BV / sorted_BV.sum(-1, keepdim=True)
            before_BV = sorted_BV.cumsum(-1, dtype=torch.float64) - sorted_BV
            sorted_BV = sorted_BV.masked_fill(before_BV >= self.top_p, 0)
            p_BV = torch.zeros_like(p_BV).scatter(-1, order_BV, sorted_BV)
        mass_BV = p_BV.cumsum(-1, dtype=torch.float64)
        # The factor keeps rounding from reaching the total mass, where there is no token.
        quantile_B1 = uniform_B.unsqueeze(-1) * mass_BV[:, -1:] * (1 - 2**-40)
        return torch.searchsorted(mass_BV, quantile_B1, right=True).squeeze(-1)


class PromptReader:
    """Feeds a token stream to a model, with constant memory and constant time per token."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.state: State | None = None

    def read(self, ids: Sequence[int]) -> Float[Tensor, " V"]:
        """Feed `ids` (at least one) and return the logits of the next token."""
        device = next(self.model.parameters()).device
        # Entered at each call, because a suspended generator must not leave the caller in inference mode.
        with stored(self.model):
            for start in range(0, len(ids), _PROMPT_CHUNK):
                chunk_BT = torch.tensor([ids[start : start + _PROMPT_CHUNK]], device=device)
                h_BTD, self.state = self.model(chunk_BT, None, self.state)
            return self.model.logits(h_BTD[0, -1])


def _text(tokenizer: Tokenizer, previous: int, sampled: Iterable[int]) -> Iterator[str]:
    """Yield the text of the tokens `sampled` after the token `previous`, up to a BOS, in pieces."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for token in sampled:
        if tokenizer.separator and token == tokenizer.bos_id:
            break
        piece = decoder.decode(tokenizer.decode([token], previous=previous))
        if piece:
            yield piece
        previous = token
    rest = decoder.decode(b"", final=True)
    if rest:
        yield rest


def sampled_rows(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    tokens: int,
    samplers: Sequence[Sampler],
    end: int | None = None,
) -> Iterator[list[int]]:
    """Yield `tokens` rows: the next token of each stream after the ids of its prompt, from its sampler.

    The tokens of a stream after its first `end` mean nothing, and after that of the last stream there are no rows.

    Parallel passes read the prompts, one after the other. Then all streams take each step together: on a CPU the
    compiled one, on a GPU a captured graph. Where a CPU has no Numba, or the model has attention, it is the pass of the
    model. The samplers differ only in their seeds.
    """
    if not tokens:
        return
    row, states = [], []
    for ids, sampler in zip(prompts, samplers, strict=True):
        reader = PromptReader(model)
        row.append(sampler(reader.read(ids)))
        assert reader.state is not None
        states.append(reader.state)
    yield row
    state: State = [
        type(layers[0])(*(torch.cat(values) for values in zip(*layers, strict=True)))
        for layers in zip(*states, strict=True)
    ]
    step = CpuStep(model, state) if supports_cpu_step(model) else StaticStep(model, state)
    step.tokens_B.copy_(torch.tensor(row))

    def uniforms(count: int) -> Float[Tensor, "N B"]:
        return torch.cat([sampler.uniforms(count) for sampler in samplers], dim=1)

    ended = {stream for stream, token in enumerate(row) if token == end}
    if isinstance(step, CpuStep):
        step.ended = ended
    rows = sampled_tokens(GraphedStep(step, samplers[0].sample), uniforms, tokens - 1)
    while len(ended) < len(row) and (following := next(rows, None)):
        yield following
        ended |= {stream for stream, token in enumerate(following) if token == end}
