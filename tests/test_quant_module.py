"""The cache of a step's weights: what passes read inside it, and where their gradients go."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from jepamba.config import Model, Quant
from jepamba.model import LanguageModel


def shaken(quant: Quant) -> LanguageModel:
    config = Model(vocab_size=40, embed_dim=12, d_model=16, n_layer=3, headdim=8, d_state=4, chunk_size=8)
    model = LanguageModel(config, quant).train()
    with torch.no_grad():
        for master in model.parameters():
            master += 0.1 * torch.randn_like(master)
    model.set_fake_quantization(True)
    return model


def backward(model: LanguageModel, leaves: list[Tensor], seed: int) -> None:
    tokens = torch.randint(40, (2, 20), generator=torch.Generator().manual_seed(seed))
    model.loss(model(tokens)[0], tokens, 1e-2).total.backward(inputs=leaves)


@pytest.mark.parametrize("quant", [Quant(large=64), Quant(large=64, vectors="int8")], ids=str)
def test_micro_batches_over_cached_weights_give_the_masters_the_gradients_of_plain_passes(quant: Quant) -> None:
    model = shaken(quant)
    masters = list(model.parameters())
    for seed in (0, 1):
        backward(model, masters, seed)
    expected = [master.grad.clone() for master in masters if master.grad is not None]
    model.zero_grad()
    cache = model.cached_weights(torch.float32)
    cache.compute()
    with cache as leaves:
        for seed in (0, 1):
            backward(model, leaves, seed)
    for master, gradient in zip(masters, expected, strict=True):
        assert master.grad is not None
        assert torch.equal(master.grad, gradient)


def test_cached_values_are_the_effective_weights_and_keep_their_place() -> None:
    model = shaken(Quant(large=64))
    cache, places = model.cached_weights(torch.bfloat16), set()
    for _ in range(2):
        with torch.no_grad():
            for master in model.parameters():
                master.mul_(1.5)
        cache.compute()
        expected = {name: weight.effective_weight().detach() for name, weight in model.quant_weights().items()}
        with cache as leaves:
            with torch.autocast("cpu", torch.bfloat16):
                backward(model, leaves, 0)
            for (name, weight), leaf in zip(model.quant_weights().items(), leaves, strict=True):
                assert weight.effective_weight() is leaf
                dtype = torch.bfloat16 if name.endswith(".weight") else torch.float32
                assert leaf.dtype == dtype, name
                assert torch.equal(leaf, expected[name].to(dtype)), name
                assert leaf.grad is not None
                assert leaf.grad.dtype == torch.float32
            places.add(tuple((leaf.data_ptr(), leaf.grad.data_ptr()) for leaf in leaves if leaf.grad is not None))
            model.eval()
            assert all(
                torch.equal(weight.effective_weight(), expected[name]) for name, weight in model.quant_weights().items()
            )
            model.train()
    assert len(places) == 1


def test_an_error_inside_still_hands_the_gradients_on_and_ends_the_use_of_the_cache() -> None:
    model = shaken(Quant(large=64))
    cache = model.cached_weights(torch.float32)
    cache.compute()

    def broken() -> None:
        with cache as leaves:
            backward(model, leaves, 0)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        broken()
    for weight, leaf in zip(model.quant_weights().values(), cache.leaves, strict=True):
        assert weight.master.grad is leaf.grad is not None
        assert weight.effective_weight() is not leaf
