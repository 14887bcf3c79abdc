"""What the latents of a text know beyond the next token: linear probes, and how the latents change over time.

Each probe is a ridge regression in closed form, fitted on the first documents and measured on the last fifth of the
text. Beside its accuracy stand that of the most frequent class, and that of the same probe fitted on shuffled labels.

Legend: N tokens, M sampled positions, D d_model, S sentences, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor

from jepamba.errors import UserError
from jepamba.evaluate.latents import Latents
from jepamba.evaluate.probe import predict, r_squared, ridge
from jepamba.evaluate.text_labels import document_groups, document_texts, sentence_numbers
from jepamba.text import Tokenizer

COSINE_LAGS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Tokens between the two latents of a cosine."""
LAGS = (1, 2, 4, 8, 16, 32)
"""Tokens ahead of a prediction."""
PARTS = 8
"""Parts of the vocabulary with about as many tokens of the text each, from frequent to rare."""
GROUPS = 8
"""Groups of documents; a fifth of the documents if there are fewer than 40."""
QUARTERS = 4
_MIN_SENTENCE = 8
"""Tokens of the shortest sentence whose quarters are told apart."""
_FAR = 2
"""Sentences between the right and a wrong continuation, at least."""
_MOST_POSITIONS = 100_000
_SEED = 0
"""Of the shuffled labels, the wrong continuations and the clusters."""


def probe_latents(found: Latents, tokenizer: Tokenizer, seq_len: int = 0) -> dict[str, Any]:
    """Probe the latents of a text.

    Arguments:
        found: Latents, in the order of the text.
        seq_len: Length of the windows in which the model read the text. 0: the state was carried. Two latents are
            compared over time only within a window and a document.

    Returns:
        - `held_out`: number of held-out positions.
        - `cosine`: by lag k, the mean cosine of two latents k tokens apart, after subtraction of the mean latent.
        - `latent_r2`: by lag k, `r2` of the linear prediction of the latent k tokens ahead, and `shuffled`.
        - `probes`: by name, `accuracy`, `majority`, `shuffled` and the number of `classes`:
          `part_1` to `part_32`, the part of the vocabulary of the token k ahead; `document_group`, the cluster of the
          document; `sentence_quarter`, how much of its sentence has been read; `next_sentence`, whether the
          continuation predicted at the end of a sentence is closer to the next sentence than to another one of the
          document (`majority` is chance, 0.5). A probe with fewer than two classes is left out.

    Raises: `UserError` if there are fewer than 1,000 latents.
    """
    rng = np.random.default_rng(_SEED)
    latents_ND, documents_N = found.latents, found.documents.numpy()
    count = len(documents_N)
    if count < 1000:
        raise UserError(f"{count} latents are too few for probes; use a text, or a --limit, of 1,000 tokens or more")
    held_out = _held_out_from(documents_N)
    segments_N = documents_N.astype(np.int64) * (count + 1)
    if seq_len > 0:
        segments_N += np.arange(count) // seq_len
    parts_N = vocabulary_parts(found.tokens.numpy(), PARTS)
    result: dict[str, Any] = {"held_out": count - held_out, "cosine": {}, "latent_r2": {}, "probes": {}}
    mean_D = latents_ND.mean(0, dtype=torch.float32)
    for lag in COSINE_LAGS:
        rows = _pairs(segments_N, lag)
        if len(rows):
            a_MD, b_MD = (latents_ND[rows + shift].float() - mean_D for shift in (0, lag))
            result["cosine"][str(lag)] = float(F.cosine_similarity(a_MD, b_MD, dim=-1).mean())
    for lag in LAGS:
        rows = _pairs(segments_N, lag)
        fit, test = rows[rows + lag < held_out], rows[rows >= held_out]
        if min(len(fit), len(test)) < 2:
            continue
        result["latent_r2"][str(lag)] = {
            "r2": _r2(latents_ND, fit, fit + lag, test, test + lag),
            "shuffled": _r2(latents_ND, fit, rng.permutation(fit + lag), test, test + lag),
        }
        result["probes"][f"part_{lag}"] = _classify(latents_ND, parts_N, fit, test, lag, rng)
    everywhere = np.arange(0, count, _step(count))
    sentences_N = sentence_numbers(found.tokens.numpy(), documents_N, tokenizer)
    for name, labels_N in (
        ("document_group", _groups(found, tokenizer)),
        ("sentence_quarter", sentence_quarters(sentences_N)),
    ):
        rows = everywhere[labels_N[everywhere] >= 0]
        fit, test = rows[rows < held_out], rows[rows >= held_out]
        if len(np.unique(labels_N[fit])) > 1 and len(test):
            result["probes"][name] = _classify(latents_ND, labels_N, fit, test, 0, rng)
    matched = match_next_sentence(latents_ND, sentences_N, documents_N, held_out, rng)
    if matched:
        result["probes"]["next_sentence"] = matched
    return result


def vocabulary_parts(tokens_N: NDArray[np.integer], parts: int) -> NDArray[np.int64]:
    """Divide the vocabulary by frequency into `parts` with about as many tokens of the text each.

    Returns: the part of each token, 0 for the most frequent symbols. A symbol is in one part only.
    """
    counts_V = np.bincount(tokens_N.astype(np.int64))
    order_V = np.argsort(-counts_V, kind="stable")
    before_V = np.cumsum(counts_V[order_V]) - counts_V[order_V]
    part_V = np.empty_like(order_V)
    part_V[order_V] = np.minimum(before_V * parts // max(len(tokens_N), 1), parts - 1)
    part_N: NDArray[np.int64] = part_V[tokens_N].astype(np.int64)
    return part_N


def sentence_quarters(sentences_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return which quarter of its sentence each token is in, by tokens; −1 in sentences of fewer than eight tokens."""
    _, starts_S, lengths_S = np.unique(sentences_N, return_index=True, return_counts=True)
    length_N = np.repeat(lengths_S, lengths_S)
    quarter_N = (np.arange(len(sentences_N)) - np.repeat(starts_S, lengths_S)) * QUARTERS // length_N
    return np.where(length_N < _MIN_SENTENCE, -1, quarter_N).astype(np.int64)


def match_next_sentence(
    latents_ND: Float[Tensor, "N D"],
    sentences_N: NDArray[np.int64],
    documents_N: NDArray[np.integer],
    held_out: int,
    rng: np.random.Generator,
) -> dict[str, float]:
    """Predict the mean latent of the next sentence from the latent at the end of a sentence, and match it.

    A match is right if the prediction is closer, by squared distance, to the mean latent of the next sentence than to
    that of another sentence of the same document, which is at least two sentences away from it.

    Arguments: `held_out`, the first held-out position.
    Returns: the entries of a probe; empty if there are fewer than two sentences on each side of `held_out`.
    """
    _, starts_S, lengths_S = np.unique(sentences_N, return_index=True, return_counts=True)
    ends_S, document_S = starts_S + lengths_S - 1, documents_N[starts_S]
    sums_SD = torch.zeros(len(starts_S), latents_ND.shape[1], dtype=torch.float64)
    index_N = torch.from_numpy(np.repeat(np.arange(len(starts_S)), lengths_S))
    for start in range(0, len(index_N), _MOST_POSITIONS):
        part = slice(start, start + _MOST_POSITIONS)
        sums_SD.index_add_(0, index_N[part], latents_ND[part].double())
    means_SD = sums_SD / torch.from_numpy(lengths_S).unsqueeze(1)
    sentences = np.arange(len(starts_S) - 1)
    sentences = sentences[document_S[sentences] == document_S[sentences + 1]]
    fit = sentences[ends_S[sentences + 1] < held_out]
    test, wrong = [], []
    for sentence in sentences[starts_S[sentences] >= held_out].tolist():
        first, last = np.searchsorted(document_S, document_S[sentence] + np.array([0, 1]))
        others = np.arange(first, last)
        others = others[np.abs(others - sentence - 1) >= _FAR]
        if len(others):
            test.append(sentence)
            wrong.append(int(rng.choice(others)))
    if min(len(fit), len(test)) < 2:
        return {}
    ends_MD = latents_ND[ends_S[test]]

    def accuracy(targets: NDArray[np.int64]) -> float:
        predicted_MD = predict(ends_MD, ridge(latents_ND[ends_S[fit]], means_SD[targets]))
        right, other = (
            (predicted_MD - means_SD[rows]).square().sum(-1) for rows in (np.array(test) + 1, np.array(wrong))
        )
        return float((right < other).double().mean())

    return {
        "accuracy": accuracy(fit + 1),
        "majority": 0.5,
        "shuffled": accuracy(rng.permutation(fit + 1)),
        "classes": 2,
    }


def _held_out_from(documents_N: NDArray[np.integer]) -> int:
    """The first held-out position: the first start of a document in the last fifth, or of that fifth without one."""
    count = len(documents_N)
    fifth = count - count // 5
    starts = np.flatnonzero(np.diff(documents_N)) + 1
    later = starts[starts >= fifth]
    return int(later[0]) if len(later) and later[0] < count - count // 20 else fifth


def _groups(found: Latents, tokenizer: Tokenizer) -> NDArray[np.int64]:
    """The group of each token's document; all 0 for fewer than ten documents."""
    documents_N = found.documents.numpy().astype(np.int64)
    texts = document_texts(found.tokens.numpy(), documents_N, tokenizer)
    groups = min(GROUPS, len(texts) // 5)
    if groups < 2:
        return np.zeros(len(documents_N), dtype=np.int64)
    group_N: NDArray[np.int64] = document_groups(texts, groups, _SEED)[documents_N - documents_N[0]]
    return group_N


def _step(count: int) -> int:
    return -(-count // _MOST_POSITIONS)


def _pairs(segments_N: NDArray[np.int64], lag: int) -> NDArray[np.int64]:
    """Positions t whose position t + `lag` is in the same segment, at most `_MOST_POSITIONS` of them."""
    rows: NDArray[np.int64] = np.flatnonzero(segments_N[:-lag] == segments_N[lag:])
    return rows[:: max(1, _step(len(rows)))]


def _r2(
    latents_ND: Tensor,
    fit_from: NDArray[np.int64],
    fit_to: NDArray[np.int64],
    test_from: NDArray[np.int64],
    test_to: NDArray[np.int64],
) -> float:
    targets_MD = latents_ND[fit_to]
    predicted_MD = predict(latents_ND[test_from], ridge(latents_ND[fit_from], targets_MD))
    return r_squared(predicted_MD, latents_ND[test_to], targets_MD.double().mean(0))


def _classify(
    latents_ND: Tensor,
    labels_N: NDArray[np.int64],
    fit: NDArray[np.int64],
    test: NDArray[np.int64],
    lag: int,
    rng: np.random.Generator,
) -> dict[str, float]:
    """Probe the labels `lag` tokens ahead."""
    labels = torch.from_numpy(labels_N)
    classes = int(labels_N.max()) + 1
    truth_M: Int64[Tensor, " M"] = labels[test + lag]

    def accuracy(labels_M: Tensor) -> float:
        weights = ridge(latents_ND[fit], F.one_hot(labels_M, classes).double())
        return float((predict(latents_ND[test], weights).argmax(-1) == truth_M).double().mean())

    fitted_M = labels[fit + lag]
    majority = int(torch.bincount(fitted_M).argmax())
    return {
        "accuracy": accuracy(fitted_M),
        "majority": float((truth_M == majority).double().mean()),
        "shuffled": accuracy(fitted_M[torch.from_numpy(rng.permutation(len(fitted_M)))]),
        "classes": len(np.unique(labels_N[labels_N >= 0])),
    }


def probe_rows(measured: dict[str, Any]) -> Sequence[Sequence[str]]:
    """Return the probes of `probe_latents` as rows of text, with headings, for a table."""
    rows = [["probe", "accuracy", "majority", "shuffled labels"]]
    for name, probe in measured["probes"].items():
        rows.append([name, *(f"{100 * probe[key]:.1f} %" for key in ("accuracy", "majority", "shuffled"))])
    for lag, found in measured["latent_r2"].items():
        rows.append([f"latent {lag} ahead, R²", f"{found['r2']:.3f}", "0.000", f"{found['shuffled']:.3f}"])
    return rows
