"""A trained model with its tokenizer: from text to scores, new text and latents. docs/python.md has examples.

A thin layer over `evaluate` and `generate`.

Legend: T tokens, N positions, D d_model.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, Literal, overload

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from jepamba.artifact.store import Artifact
from jepamba.config import Model
from jepamba.data.tokens import tokens_in_memory
from jepamba.errors import UserError
from jepamba.evaluate import score_carried, score_plain, score_sliding
from jepamba.evaluate.many import latents_of_documents, score_documents
from jepamba.evaluate.text_score import TextScore, text_score
from jepamba.generate import generate, generate_many
from jepamba.jepa import JepaHeads
from jepamba.model import LanguageModel
from jepamba.text import Tokenizer


class TextModel:
    """A trained model with its tokenizer; `jepamba.load` returns it.

    `score`, `latents` and `generate` also take a list of texts, and then return a list. Each text is one document.
    The figures are those of the commands `jepamba eval`, `latents` and `generate`.

    Arguments:
        artifact: The model, its tokenizer and its stored settings.
        load_heads: Returns the JEPA heads, when they are first needed.
    """

    def __init__(self, artifact: Artifact, load_heads: Callable[[], JepaHeads]) -> None:
        self.artifact = artifact
        self._load_heads = load_heads

    def __repr__(self) -> str:
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        tokens = f"{self.tokenizer.vocab_size:,} {self.tokenizer.kind} tokens"
        return f"TextModel({parameters:,} parameters, {tokens}, on {self._device})"

    @property
    def model(self) -> LanguageModel:
        """The network, a PyTorch module in evaluation mode: `h_BTD, state = model(ids_BT)`, `model.logits(h_BTD)`."""
        return self.artifact.model

    @property
    def tokenizer(self) -> Tokenizer:
        """Converts text to ids (`encode`) and ids to bytes (`decode`)."""
        return self.artifact.tokenizer

    @property
    def config(self) -> Model:
        """The settings of the network, such as `d_model` and `n_layer`."""
        return self.model.config

    @property
    def temperature(self) -> float:
        """The divisor of the logits that the artifact stores."""
        return self.artifact.temperature

    @cached_property
    def heads(self) -> JepaHeads:
        """The projector and predictor. Raises `UserError` if the run did not keep them (`train.keep_heads`)."""
        return self._load_heads()

    def encode(self, text: str) -> Int64[Tensor, " T"]:
        """Return the ids of a document as the model reads them, BOS first, on the model's device."""
        _check_texts("text", text)
        tokens = tokens_in_memory([text], self.tokenizer)
        return torch.from_numpy(tokens.read(0, len(tokens)).astype(np.int64)).to(self._device)

    @overload
    def score(
        self, text: str, *, carry: bool = ..., sliding: int = ..., temperature: float | None = ...
    ) -> TextScore: ...
    @overload
    def score(
        self, text: list[str], *, carry: bool = ..., sliding: int = ..., temperature: float | None = ...
    ) -> list[TextScore]: ...
    def score(
        self, text: str | list[str], *, carry: bool = False, sliding: int = 0, temperature: float | None = None
    ) -> TextScore | list[TextScore]:
        """Score a text in bits per byte, as `jepamba eval` scores a file with this text.

        The texts of a list are read in parallel; their scores are the same up to rounding.

        Arguments:
            carry: Carry the state through the text. Otherwise each window of `data.seq_len` tokens starts anew.
            sliding: Use overlapping windows that start this many tokens apart. 0: adjacent windows.
            temperature: Divisor of the logits. None: the artifact's.

        Raises:
            UserError: The text is empty or has a NUL, or an argument is out of range.
            TypeError: An argument has another type.
        """
        _check_texts("text", text, or_list=True)
        _check_number("sliding", sliding, whole=True)
        _check_number("temperature", temperature if temperature is not None else 1.0)
        seq_len = self.artifact.run.data.seq_len
        if not 0 <= sliding <= seq_len:
            raise UserError(
                f"sliding = {sliding}: must be 0 (adjacent windows), or at most the window length {seq_len}"
            )
        if carry and sliding:
            raise UserError("carry and sliding exclude each other; choose one")

        data, temperature = self.artifact.run.data, self.temperature if temperature is None else temperature
        if isinstance(text, list) and not sliding:
            documents = [tokens_in_memory([one], self.tokenizer) for one in text]
            return score_documents(
                self.model, documents, data.seq_len, carry=carry, reset=data.reset, temperature=temperature
            )
        if isinstance(text, list):
            return [self.score(one, sliding=sliding, temperature=temperature) for one in text]
        tokens = tokens_in_memory([text], self.tokenizer)
        nats_N = torch.empty(max(len(tokens) - 1, 0), dtype=torch.float64)
        common: dict[str, Any] = {"temperature": temperature, "reset": data.reset, "nats_N": nats_N}
        if sliding:
            score = score_sliding(self.model, tokens, data.seq_len, stride=sliding, **common)
        elif carry:
            score = score_carried(self.model, tokens, data.seq_len, **common)
        else:
            score = score_plain(self.model, tokens, data.seq_len, **common)
        return text_score(score, tokens, nats_N)

    @overload
    def generate(
        self, prompt: str, max_new_tokens: int = ..., *, seed: int = ..., temperature: float = ..., top_k: int = ...,
        top_p: float = ...,
    ) -> str: ...  # fmt: skip
    @overload
    def generate(
        self, prompt: list[str], max_new_tokens: int = ..., *, seed: int = ..., temperature: float = ...,
        top_k: int = ..., top_p: float = ...,
    ) -> list[str]: ...  # fmt: skip
    def generate(
        self,
        prompt: str | list[str],
        max_new_tokens: int = 128,
        *,
        seed: int = 0,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
    ) -> str | list[str]:
        """Continue a prompt. Returns the new text, without the prompt.

        Arguments and errors: see `stream`. Prompts of a list are continued in parallel, the i-th (from 0) with the
        seed `seed + i`.
        """
        _check_texts("prompt", prompt, or_list=True)
        sampling = self._sampling(max_new_tokens, seed, temperature, top_k, top_p)
        found = generate_many(
            self.model, self.tokenizer, [prompt] if isinstance(prompt, str) else prompt, max_new_tokens, **sampling
        )
        return found[0] if isinstance(prompt, str) else found

    def stream(
        self,
        prompt: str,
        max_new_tokens: int = 128,
        *,
        seed: int = 0,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
    ) -> Iterator[str]:
        """Continue a prompt, which starts a document, and yield the new text in pieces as it is sampled.

        The text ends after `max_new_tokens`, or where the model starts another document.

        Arguments:
            seed: The same seed gives the same text.
            temperature: 0: always the most likely token. 1: the temperature of the artifact.
            top_k: Sample from the `top_k` most likely tokens only. 0: all.
            top_p: Sample from the smallest set of most likely tokens with this total probability.

        Raises:
            UserError: A value is out of range.
            TypeError: An argument has another type.
        """
        _check_texts("prompt", prompt)
        sampling = self._sampling(max_new_tokens, seed, temperature, top_k, top_p)
        return generate(self.model, self.tokenizer, prompt, max_new_tokens, **sampling)

    def _sampling(self, max_new_tokens: int, seed: int, temperature: float, top_k: int, top_p: float) -> dict[str, Any]:
        """Check the arguments of `stream`. Returns how to sample, with the temperature of the artifact included."""
        for name, value in (("max_new_tokens", max_new_tokens), ("seed", seed), ("top_k", top_k)):
            _check_number(name, value, whole=True)
        _check_number("temperature", temperature)
        _check_number("top_p", top_p)
        # Here and not only in `generate`, so that the message has the caller's number and not the product.
        if not 0 <= temperature < math.inf:
            raise UserError(f"temperature = {temperature:g}: must be 0 (always the most likely token) or more")
        return {"temperature": temperature * self.temperature, "top_k": top_k, "top_p": top_p, "seed": seed}

    @overload
    def latents(self, text: str, kind: Literal["h", "z"] = ..., *, carry: bool = ...) -> Tensor: ...
    @overload
    def latents(self, text: list[str], kind: Literal["h", "z"] = ..., *, carry: bool = ...) -> list[Tensor]: ...
    def latents(self, text: str | list[str], kind: str = "h", *, carry: bool = False) -> Tensor | list[Tensor]:
        """Return a latent for each token of a text, (T, D) in fp32 on the CPU.

        Row t is the latent after the model has read token t of `encode(text)`; row 0 is that of BOS.

        Arguments:
            kind: `h`, from which the head predicts the next token, or `z`, its projection by the JEPA heads.
            carry: Carry the state through the text. Otherwise each window of `data.seq_len` tokens starts anew.

        Raises:
            UserError: The text has a NUL, or `z` has no heads.
        """
        if kind not in ("h", "z"):
            raise UserError(f"latents of kind {kind!r}: use 'h' or 'z'")
        _check_texts("text", text, or_list=True)
        documents = [tokens_in_memory([one], self.tokenizer) for one in ([text] if isinstance(text, str) else text)]
        heads = self.heads if kind == "z" else None
        seq_len = self.artifact.run.data.seq_len
        found = latents_of_documents(self.model, documents, seq_len, heads=heads, carry=carry)
        return found[0] if isinstance(text, str) else found

    def predict_next_latent(self, z: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        """Predict the latents one token after `z`, which holds latents or earlier predictions.

        With `jepa.target_tokens` = n, the prediction is the mean of the next n latents.

        Raises `UserError` if the run did not keep its JEPA heads, if the width of `z` is not theirs, or if they also
        read the next token (`jepa.action`): `heads.step` takes its embedding. `TypeError` if `z` is no tensor.
        """
        if not isinstance(z, Tensor):
            raise TypeError(f"z is a {type(z).__name__}, not a tensor, as latents(text, 'z') returns for one text")
        if self.heads.config.action:
            raise UserError("the predictor of this model also reads the next token (jepa.action): use heads.step")
        width = self.config.d_model
        if z.shape[-1:] != (width,):
            raise UserError(f"z has the shape {tuple(z.shape)}: the last dimension must be {width}, as of latents")
        with torch.no_grad():
            z_1NE = z.to(self._device, torch.float32).reshape(1, -1, z.shape[-1])
            return self.heads.step(z_1NE).reshape(z.shape).to(z.device)

    @property
    def _device(self) -> torch.device:
        device: torch.device = next(self.model.parameters()).device
        return device


def _check_texts(name: str, value: object, or_list: bool = False) -> None:
    """Raise `TypeError` unless the argument `name` is a string or, with `or_list`, a list of strings."""
    wanted = "a str or a list of str" if or_list else "one str"
    if isinstance(value, list) and or_list:
        wrong = next((index for index, one in enumerate(value) if not isinstance(one, str)), None)
        if wrong is not None:
            raise TypeError(f"{name}[{wrong}] is of type {type(value[wrong]).__name__}: pass {wanted}")
    elif not isinstance(value, str):
        remedy = ", as of .decode()" if isinstance(value, bytes) else ""
        raise TypeError(f"{name} is of type {type(value).__name__}: pass {wanted}{remedy}")


def _check_number(name: str, value: object, whole: bool = False) -> None:
    """Raise `TypeError` unless the argument `name` is a number, or with `whole` an integer."""
    kinds = numbers.Integral if whole else numbers.Real
    if not isinstance(value, kinds):
        raise TypeError(f"{name} is of type {type(value).__name__}: pass {'an int' if whole else 'a float'}")
