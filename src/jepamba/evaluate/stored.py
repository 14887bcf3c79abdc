"""Evaluation with the quantized weights that the artifact will hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from jepamba.model import LanguageModel


@contextmanager
def stored(model: LanguageModel) -> Iterator[LanguageModel]:
    """Put `model` into evaluation and inference mode with quantized weights, and restore it afterwards.

    Evaluation mode alone gives the same values, but it quantizes each weight at each use. Here that happens once.
    """
    before = [(weight, weight.master.data, weight.loaded) for weight in model.quant_weights().values()]
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for weight, _, _ in before:
                weight.load(weight.effective_weight())
            yield model
    finally:
        for weight, master, loaded in before:
            weight.master.data, weight.loaded = master, loaded
        model.train(training)
