"""A model as its artifact will hold it, for as long as an evaluation runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from jepamba.model import LanguageModel


@contextmanager
def stored(model: LanguageModel) -> Iterator[LanguageModel]:
    """`model` in evaluation mode and inference mode, its weights on their grids; afterwards all is as it was.

    Evaluation mode alone gives the same values, but rounds every weight anew at each use; here it happens once.
    """
    modules = list(model.gridded())
    before = [(module, module.on_grid) for module in modules]
    masters = {name: parameter.data for name, parameter in model.named_parameters()}
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            # Not in inference mode, these would be ordinary tensors; either way nobody sees them after this block.
            if not all(on_grid for _, on_grid in before):
                grids, encoded = model.named_grids(), model.export_weights()
                shapes = {name: tuple(value.shape) for name, value in masters.items()}
                model.load_decoded({name: grids[name].decode(encoded[name], shapes[name]) for name in shapes})
            yield model
    finally:
        for name, parameter in model.named_parameters():
            parameter.data = masters[name]
        for module, on_grid in before:
            module.on_grid = on_grid
        model.train(training)
