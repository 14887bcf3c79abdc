"""Linear probes: what a linear map can predict from a latent, measured on held-out positions.

There are two probes, each with baselines:

- the class of the next token, by the first character of its text (a blank, a lower-case letter, a capital, a digit,
  anything else, or no text). Baselines: the most frequent class, and a probe of the current token's embedding;
- the embedding of the next token, measured by R². Baselines: a probe of the current token's embedding, and the mean of
  the training positions, which has R² = 0.

Legend: N positions, F features, C outputs.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from jepamba.text import Tokenizer

RIDGE = 1e-3
"""Penalty, relative to the mean variance of a feature."""
CLASSES = ("no text", "blank", "lower case", "capital", "digit", "other")


def token_classes(tokenizer: Tokenizer, vocab_size: int) -> Int64[Tensor, " V"]:
    """Return the class of each token, as an index into `CLASSES`, by the first byte of its text."""
    classes = np.zeros(vocab_size, dtype=np.int64)
    for token in range(min(vocab_size, tokenizer.vocab_size)):
        classes[token] = _class(tokenizer.decode([token]))
    return torch.from_numpy(classes)


def _class(text: bytes) -> int:
    if not text:
        return 0
    first = text[:1]
    for index, predicate in enumerate((bytes.isspace, bytes.islower, bytes.isupper, bytes.isdigit), start=1):
        if predicate(first):
            return index
    return len(CLASSES) - 1


def ridge(x_NF: Float[Tensor, "N F"], y_NC: Float[Tensor, "N C"]) -> Float[Tensor, "F1 C"]:
    """Return the weights of the ridge regression of y on x in float64 (Hoerl & Kennard 1970).

    The last row is the intercept, which is not penalized.
    """
    x_NF, y_NC = x_NF.double(), y_NC.double()
    mean_F, mean_C = x_NF.mean(0), y_NC.mean(0)
    centred_NF = x_NF - mean_F
    gram_FF = centred_NF.T @ centred_NF
    penalty = RIDGE * gram_FF.diagonal().mean().clamp_min(1e-12)
    gram_FF.diagonal().add_(penalty)
    slope_FC = torch.linalg.solve(gram_FF, centred_NF.T @ (y_NC - mean_C))
    return torch.cat([slope_FC, (mean_C - mean_F @ slope_FC).unsqueeze(0)])


def predict(x_NF: Float[Tensor, "N F"], weights_F1C: Float[Tensor, "F1 C"]) -> Float[Tensor, "N C"]:
    """Apply the regression to `x_NF`."""
    return x_NF.double() @ weights_F1C[:-1] + weights_F1C[-1]


def r_squared(predicted_NC: Float[Tensor, "N C"], y_NC: Float[Tensor, "N C"], mean_C: Float[Tensor, " C"]) -> float:
    """Return 1 − squared error / squared distance from `mean_C`, over all outputs."""
    error = (predicted_NC - y_NC.double()).square().sum()
    return float(1.0 - error / (y_NC.double() - mean_C.double()).square().sum().clamp_min(1e-12))


def probe(
    latents_NF: Float[Tensor, "N F"],
    embedded_NE: Float[Tensor, "N E"],
    next_embedded_NE: Float[Tensor, "N E"],
    next_class_N: Int64[Tensor, " N"],
    held_out: int,
) -> dict[str, float]:
    """Fit both probes on all but the last `held_out` positions, and measure them on the last `held_out`.

    Arguments:
        latents_NF: Latents.
        embedded_NE: Embeddings of the current tokens.
        next_embedded_NE: Embeddings of the next tokens.
        next_class_N: Classes of the next tokens (`token_classes`).
        held_out: Number of held-out positions.
    """
    fit, test = slice(None, -held_out), slice(-held_out, None)
    onehot_NC = torch.nn.functional.one_hot(next_class_N, len(CLASSES)).double()
    majority = int(onehot_NC[fit].sum(0).argmax())
    result = {"next_class_majority": float((next_class_N[test] == majority).double().mean())}
    mean_E = next_embedded_NE[fit].double().mean(0)
    for suffix, x_NF in (("", latents_NF), ("_from_token", embedded_NE)):
        class_N = predict(x_NF[test], ridge(x_NF[fit], onehot_NC[fit])).argmax(-1)
        result["next_class" + suffix] = float((class_N == next_class_N[test]).double().mean())
        predicted_NE = predict(x_NF[test], ridge(x_NF[fit], next_embedded_NE[fit]))
        result["next_embedding_r2" + suffix] = r_squared(predicted_NE, next_embedded_NE[test], mean_E)
    return result
