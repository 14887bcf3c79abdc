"""A model as its artifact will hold it, for as long as an evaluation runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from jepamba.model import LanguageModel


@contextmanager
def stored(model: LanguageModel) -> Iterator[LanguageModel]:
    """`model` in evaluation mode and inference mode, its weights quantized; afterwards all is as it was.

    Evaluation mode alone gives the same values, but quantizes every weight anew at each use; here it happens once.
    """
    before = [(weight, weight.master.data, weight.loaded) for weight in model.weights().values()]
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            # Not in inference mode, these would be ordinary tensors; either way nobody sees them after this block.
            for weight, _, _ in before:
                weight.load(weight.effective_weight())
            yield model
    finally:
        for weight, master, loaded in before:
            weight.master.data, weight.loaded = master, loaded
        model.train(training)
