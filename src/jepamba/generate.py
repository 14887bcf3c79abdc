"""Text generation by recurrent decoding: one token at a time, with a state of constant size.

Legend: B batch (= 1), T tokens, D d_model, V vocabulary.
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from jepamba.errors import DivergedError, UserError
from jepamba.evaluate.stored import stored
from jepamba.model import LanguageModel, State
from jepamba.text import Tokenizer

_PROMPT_CHUNK = 1024
"""Tokens of the prompt in one forward pass."""


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
    if tokens < 0:
        raise UserError(f"tokens = {tokens}: must be 0 or more")
    if not 0 <= temperature < math.inf:
        raise UserError(f"temperature = {temperature}: must be 0 (always the most likely token) or more")
    if top_k < 0:
        raise UserError(f"top_k = {top_k}: must be 0 (all tokens) or more")
    if not 0 < top_p <= 1:
        raise UserError(f"top_p = {top_p}: must be above 0 and at most 1")
    if not -(2**63) <= seed < 2**64:
        raise UserError(f"seed = {seed}: must fit in 64 bits")
    if tokenizer.vocab_size > model.config.vocab_size:
        raise UserError(f"the tokenizer has {tokenizer.vocab_size} symbols, the model only {model.config.vocab_size}")
    start = [tokenizer.bos_id] if tokenizer.separator else []
    ids = [*start, *tokenizer.encode(prompt).tolist()]
    if not ids:
        raise UserError(
            "empty prompt: this tokenizer has no token that starts a document, so the prompt needs some text"
        )
    return _generated_text(model, tokenizer, ids, tokens, Sampler(tokenizer, model, temperature, top_k, top_p, seed))


class Sampler:
    """Samples the next token from its logits. For the arguments, see `generate`."""

    def __init__(
        self, tokenizer: Tokenizer, model: LanguageModel, temperature: float, top_k: int, top_p: float, seed: int
    ) -> None:
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        # On the CPU, so that a seed gives the same random numbers for every device of the model.
        self.random = torch.Generator().manual_seed(seed)
        self.forbidden = torch.zeros(model.config.vocab_size, dtype=torch.bool)
        self.forbidden[tokenizer.vocab_size :] = True
        self.forbidden[[i for i in tokenizer.control_ids if i != tokenizer.bos_id]] = True

    def __call__(self, logits_V: Float[Tensor, " V"]) -> int:
        """Sample the next token."""
        if logits_V.isnan().any():
            raise DivergedError
        logits_V = logits_V.float().cpu().masked_fill(self.forbidden, -math.inf)
        if self.temperature == 0:
            return int(logits_V.argmax())
        # Subtracting the maximum first prevents overflow at a tiny temperature.
        values_V, order_V = (logits_V - logits_V.max()).double().div(self.temperature).sort(descending=True)
        p_V = values_V.softmax(-1)
        if self.top_k > 0:
            p_V[self.top_k :] = 0
        # A token stays if the tokens before it have less mass than top_p, so the first one always stays.
        p_V = p_V / p_V.sum()
        p_V[p_V.cumsum(-1) - p_V >= self.top_p] = 0
        return int(order_V[torch.multinomial(p_V, 1, generator=self.random)])


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


def _generated_text(
    model: LanguageModel, tokenizer: Tokenizer, ids: list[int], tokens: int, sampler: Sampler
) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    reader = PromptReader(model)
    for _ in range(tokens):
        token = sampler(reader.read(ids))
        if tokenizer.separator and token == tokenizer.bos_id:
            break
        piece = decoder.decode(tokenizer.decode([token], previous=ids[-1]))
        if piece:
            yield piece
        ids = [token]
    rest = decoder.decode(b"", final=True)
    if rest:
        yield rest
