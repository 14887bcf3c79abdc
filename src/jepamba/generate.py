"""Writing text: one token at a time, with a state of constant size however long the text grows.

Legend: V vocabulary.
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from jepamba.errors import UserError
from jepamba.evaluate.stored import stored
from jepamba.model import LanguageModel, State
from jepamba.text import Tokenizer

_PROMPT_PIECE = 1024
"""Tokens of the prompt that are read at a time."""


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
    """Continue `prompt` by up to `tokens` tokens; yields the new text piece by piece, the prompt not among it.

    The prompt is read as the beginning of a document. When the model itself begins another document (draws BOS), the
    text is at its end and so is the iterator; other control tokens are never drawn. A piece is whole characters: bytes
    of an unfinished one wait for the rest, and bytes that are no UTF-8 become U+FFFD.

    Arguments: `temperature` divides the logits (0: always the likeliest token; an artifact's own temperature is the
    caller's to multiply in); `top_k`, draw among so many likeliest tokens only (0: all); `top_p`, draw among the
    fewest likeliest tokens that together have this probability; `seed` of a generator of its own, so that the same
    seed gives the same text and nobody else's random numbers change.
    Raises `UserError` at once for a value out of range, or an empty prompt where no token starts a document.
    """
    if tokens < 0:
        raise UserError(f"tokens = {tokens}: must be 0 or more")
    if not 0 <= temperature < math.inf:
        raise UserError(f"temperature = {temperature}: 0 (always the likeliest token) or more")
    if top_k < 0:
        raise UserError(f"top_k = {top_k}: 0 (all tokens) or more")
    if not 0 < top_p <= 1:
        raise UserError(f"top_p = {top_p}: must lie above 0 and up to 1")
    if not -(2**63) <= seed < 2**64:
        raise UserError(f"seed = {seed}: must fit in 64 bits")
    if tokenizer.vocab_size > model.config.vocab_size:
        raise UserError(f"a tokenizer of {tokenizer.vocab_size} symbols for a model of {model.config.vocab_size}")
    start = [tokenizer.bos_id] if tokenizer.separator else []
    ids = [*start, *tokenizer.encode(prompt).tolist()]
    if not ids:
        raise UserError("an empty prompt, and this tokenizer has no token that starts a document: give some text")
    return _text(model, tokenizer, ids, tokens, Sampler(tokenizer, model, temperature, top_k, top_p, seed))


class Sampler:
    """Draws the next token from its logits; the arguments are those of `generate`."""

    def __init__(
        self, tokenizer: Tokenizer, model: LanguageModel, temperature: float, top_k: int, top_p: float, seed: int
    ) -> None:
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        # Drawn on the CPU, whatever the model's device, so that a seed means the same text's dice everywhere.
        self.random = torch.Generator().manual_seed(seed)
        self.forbidden = torch.zeros(model.config.vocab_size, dtype=torch.bool)
        self.forbidden[tokenizer.vocab_size :] = True
        self.forbidden[[i for i in tokenizer.control_ids if i != tokenizer.bos_id]] = True

    def __call__(self, logits_V: Float[Tensor, " V"]) -> int:
        """The next token."""
        logits_V = logits_V.float().cpu().masked_fill(self.forbidden, -math.inf)
        if self.temperature == 0:
            return int(logits_V.argmax())
        # Less the largest before the division: a tiny temperature must not overflow.
        values_V, order_V = (logits_V - logits_V.max()).double().div(self.temperature).sort(descending=True)
        p_V = values_V.softmax(-1)
        if self.top_k > 0:
            p_V[self.top_k :] = 0
        # A token stays if those before it do not have the wanted mass yet; so the first one always stays.
        p_V = p_V / p_V.sum()
        p_V[p_V.cumsum(-1) - p_V >= self.top_p] = 0
        return int(order_V[torch.multinomial(p_V, 1, generator=self.random)])


class PromptReader:
    """A model that reads a stream of tokens as it comes, in constant memory and constant time a token."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.state: State | None = None

    def read(self, ids: Sequence[int]) -> Float[Tensor, " V"]:
        """Take in `ids` (one or more); the logits of the token after the last of them."""
        device = next(self.model.parameters()).device
        # Entered anew at each step: a suspended generator must not leave the caller in another mode.
        with stored(self.model):
            for start in range(0, len(ids), _PROMPT_PIECE):
                piece_BT = torch.tensor([ids[start : start + _PROMPT_PIECE]], device=device)
                h_BTD, self.state = self.model(piece_BT, None, self.state)
            return self.model.logits(h_BTD[0, -1])


def _text(model: LanguageModel, tokenizer: Tokenizer, ids: list[int], tokens: int, draw: Sampler) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    reader = PromptReader(model)
    for _ in range(tokens):
        token = draw(reader.read(ids))
        if tokenizer.separator and token == tokenizer.bos_id:
            break
        piece = decoder.decode(tokenizer.decode([token], previous=ids[-1]))
        if piece:
            yield piece
        ids = [token]
    rest = decoder.decode(b"", final=True)
    if rest:
        yield rest
