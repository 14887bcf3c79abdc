"""The model `jepamba` of EleutherAI's lm-eval: `lm_eval --model jepamba --model_args artifact=runs/mine`.

The entry point `lm_eval.models` names the class. lm-eval 0.4.13 does not read entry points:
`python -m jepamba.lm_eval` is its command line with this model registered.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs

from jepamba.api import load
from jepamba.cli.common import artifact_or_shipped
from jepamba.errors import UserError
from jepamba.evaluate.many import score_continuations


@register_model("jepamba")
class JepambaLM(TemplateLM):  # type: ignore[misc]  # the library has no types
    """A trained model as lm-eval calls it. Each text is one document; the temperature is that of the artifact.

    Arguments:
        artifact: What `jepamba.load` takes: an artifact, the folder of a run, a checkpoint or `hf://owner/name`. None:
            the small model in the package, which is said on standard error.
        carry: Whether rolling log-likelihoods carry the state through the text, as `jepamba eval --carry` does.
        device: As PyTorch names it. None, or a GPU where there is none: a GPU if there is one, else the CPU.
        batch_size: Given by lm-eval, and unused: a batch has a fixed number of tokens.
        max_batch_size: As `batch_size`.

    Raises:
        UserError: An argument is unknown or wrong.
    """

    def __init__(
        self,
        artifact: str | None = None,
        carry: bool = False,
        device: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        if unknown:
            raise UserError(f"--model_args: unknown {', '.join(unknown)}; the arguments are artifact and carry")
        if not isinstance(carry, bool):
            raise UserError(f"--model_args: carry={carry}: must be True or False")
        # The default of lm-eval's command line is a GPU, also where there is none.
        missing = device is not None and device.startswith("cuda") and not torch.cuda.is_available()
        self.lm, self.carry = load(artifact_or_shipped(artifact), None if missing else device), carry

    @property
    def eot_token_id(self) -> int:
        """The token that starts a document, which precedes a continuation without context."""
        if not self.lm.tokenizer.separator:
            raise UserError("empty context: this tokenizer has no token that starts a document")
        return self.lm.tokenizer.bos_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Return the ids of `string`, after BOS unless `add_special_tokens` is False."""
        tokenizer = self.lm.tokenizer
        start = [tokenizer.bos_id] if tokenizer.separator and add_special_tokens is not False else []
        return [*start, *tokenizer.encode(string).tolist()]

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """Return ln p of each continuation after its whole context, and whether greedy decoding would write it."""
        pairs = [(context, continuation) for _, context, continuation in requests]
        artifact = self.lm.artifact
        found = score_continuations(
            self.lm.model, pairs, self.lm.tokenizer, artifact.run.data.seq_len, temperature=artifact.temperature
        )
        return [(-nats, greedy) for nats, greedy in found]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Return ln p of each text: −ln 2 times its bits in `TextModel.score`, or 0 for an empty text."""
        texts = [request.args[0] for request in requests]
        scores = iter(self.lm.score([text for text in texts if text], carry=self.carry))
        return [-math.log(2) * float(next(scores).token_bits.sum()) if text else 0.0 for text in texts]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Continue each context up to one of its stopping texts, which is cut off. The i-th request has the seed i."""
        return [self._until(request.args[0], request.args[1], index) for index, request in enumerate(requests)]

    def _until(self, context: str, arguments: dict[str, Any], seed: int) -> str:
        options = normalize_gen_kwargs(arguments)
        sampling = {name: options[name] for name in ("top_k", "top_p") if name in options}
        temperature = options.get("temperature", 0.0)
        text = ""
        for piece in self.lm.stream(context, options["max_gen_toks"], temperature=temperature, seed=seed, **sampling):
            text += piece
            found = [place for stop in options["until"] if stop and (place := text.find(stop)) >= 0]
            if found:
                return text[: min(found)]
        return text


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except UserError as error:
        print(f"jepamba: {error}", file=sys.stderr)
        sys.exit(2)
