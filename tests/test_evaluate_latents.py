"""The latents of a text are those of the model called directly, in the order of the text, in the file as in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from jepamba.config import Jepa, Model, Quant
from jepamba.data import Tokens
from jepamba.errors import UserError
from jepamba.evaluate import Latents, compute_latents, measure_latents, save_latents, score_plain, stored
from jepamba.evaluate.diagnostics import latent_statistics
from jepamba.jepa import JepaHeads
from jepamba.model import LanguageModel
from jepamba.text import ByteTokenizer
from tiny import TOPICS

LENGTHS = (50, 3, 0, 40, 17)
HEAD = b"no start "
RAW = HEAD + b"".join(b"\0" + text.encode()[:length] for text, length in zip(TOPICS, LENGTHS, strict=False))
IDS = np.frombuffer(RAW, dtype=np.uint8).astype(np.uint16)
TOKENS = Tokens([IDS[:70], IDS[70:]], ByteTokenizer())
COUNT = len(IDS) - 1


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    torch.manual_seed(1)
    config = Model(vocab_size=256, embed_dim=12, d_model=16, n_layer=2, d_state=4, headdim=8, mlp_mult=2, chunk_size=8)
    built = LanguageModel(config, Quant(large=256))
    for parameter in built.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return built


def recurrent(model: LanguageModel, reset: bool, window: int) -> Tensor:
    """h (N, D) of a model that takes one token at a time and forgets at the start of every window."""
    rows, state = [], None
    with stored(model):
        for position, token in enumerate(IDS[:COUNT].tolist()):
            if position % window == 0 or (reset and token == 0):
                state = None
            h_BTD, state = model(torch.tensor([[token]]), None, state)
            rows.append(h_BTD[0, 0])
    return torch.stack(rows)


@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize(("carry", "window"), [(False, 16), (True, 1 << 20)])
def test_latents_are_those_of_the_model_token_by_token(
    model: LanguageModel, reset: bool, carry: bool, window: int
) -> None:
    found = compute_latents(model, TOKENS, 16, carry=carry, reset=reset, tokens_per_batch=48)
    torch.testing.assert_close(found.latents, recurrent(model, reset, window), rtol=1e-3, atol=1e-3)
    other = recurrent(model, not reset, window)
    assert float((found.latents - other).abs().max()) > 0.05, "the oracle does not see the reset"
    assert np.array_equal(found.tokens.numpy(), IDS[:COUNT])


def test_the_score_follows_from_the_latents(model: LanguageModel) -> None:
    h_ND = compute_latents(model, TOKENS, 16).latents
    with stored(model):
        nats_N = torch.nn.functional.cross_entropy(
            model.logits(h_ND), torch.from_numpy(IDS[1:].astype(np.int64)), reduction="none"
        )
    assert float(nats_N.mean()) == pytest.approx(score_plain(model, TOKENS, 16).nats_per_token, rel=1e-5)


def test_each_token_has_its_document_and_its_position(model: LanguageModel) -> None:
    found = compute_latents(model, TOKENS, 16, reset=False)
    lengths = [len(HEAD), *(length + 1 for length in LENGTHS)]
    lengths[-1] -= 1  # the last token of the text has no latent
    assert found.documents.tolist() == [number for number, length in enumerate(lengths) for _ in range(length)]
    assert found.positions.tolist() == [position for length in lengths for position in range(length)]
    text = compute_latents(model, Tokens([IDS], ByteTokenizer(separator=False)), 16)
    assert text.documents.unique().tolist() == [0]
    assert text.positions.tolist() == list(range(COUNT))


@pytest.mark.parametrize("carry", [True, False])
@pytest.mark.parametrize("projector", ["linear", "mlp-batchnorm", "batchnorm", "none"])
def test_z_is_the_projection_of_h(model: LanguageModel, projector: str, carry: bool) -> None:
    heads = JepaHeads(Jepa(projector=projector), 16)  # type: ignore[arg-type]
    heads.project(torch.randn(2, 9, 16) + 3)  # moves the running statistics of BatchNorm
    before = {name: value.clone() for name, value in heads.state_dict().items()}
    z_NE = compute_latents(model, TOKENS, 16, heads=heads, carry=carry).latents
    h_ND = compute_latents(model, TOKENS, 16, carry=carry).latents
    assert heads.training
    assert all(torch.equal(value, before[name]) for name, value in heads.state_dict().items())
    with torch.no_grad():
        expected = heads.eval().project(h_ND[None])[0]
    torch.testing.assert_close(z_NE, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("carry", [True, False])
def test_z_is_of_the_layer_of_the_heads(model: LanguageModel, carry: bool) -> None:
    heads = JepaHeads(Jepa(layer=1), 16)
    z_NE = compute_latents(model, TOKENS, 16, heads=heads, carry=carry, reset=False).latents
    assert isinstance(heads.projector, torch.nn.Linear)
    expected, state = [], None
    with stored(model):
        for position, token in enumerate(IDS[:COUNT].tolist()):
            latent, state = model(torch.tensor([[token]]), None, state if carry or position % 16 else None, 1)
            expected.append(latent[0, 0] @ heads.projector.weight.T)
    torch.testing.assert_close(z_NE, torch.stack(expected), rtol=1e-3, atol=1e-3)
    with pytest.raises(UserError, match="after 3 blocks, the model has 2"):
        compute_latents(model, TOKENS, 16, heads=JepaHeads(Jepa(layer=3), 16))


def test_a_limit_takes_the_first_tokens(model: LanguageModel) -> None:
    whole, first = (compute_latents(model, TOKENS, 16, limit=limit) for limit in (0, 61))
    assert len(whole.tokens) == COUNT
    assert all(len(value) == 61 for value in first)
    for found, expected in zip(first[1:], whole[1:], strict=True):
        assert torch.equal(found, expected[:61])
    torch.testing.assert_close(first.latents, whole.latents[:61], rtol=1e-3, atol=1e-3)
    assert len(compute_latents(model, TOKENS, 16, limit=10**9).tokens) == COUNT
    with pytest.raises(UserError, match="a limit of -1 tokens"):
        compute_latents(model, TOKENS, 16, limit=-1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_other_types_are_rounded_float32(model: LanguageModel, dtype: torch.dtype) -> None:
    exact = compute_latents(model, TOKENS, 16).latents
    assert torch.equal(compute_latents(model, TOKENS, 16, dtype=dtype).latents, exact.to(dtype))


def test_latents_outside_the_range_of_the_type_are_refused(model: LanguageModel) -> None:
    heads = JepaHeads(Jepa(), 16)
    with torch.no_grad():
        heads.projector.weight.fill_(1e5)  # type: ignore[union-attr]
    assert compute_latents(model, TOKENS, 16, heads=heads).latents.isfinite().all()
    with pytest.raises(UserError, match="outside the range of"):
        compute_latents(model, TOKENS, 16, heads=heads, dtype=torch.float16)


def test_the_file_holds_what_was_computed(model: LanguageModel, tmp_path: Path) -> None:
    found = compute_latents(model, TOKENS, 16, dtype=torch.bfloat16)
    path = tmp_path / "latents.safetensors"
    assert save_latents(path, found, {"latent": "h"}) == path.stat().st_size
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"latent": "h"}
        read = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert read.keys() == set(Latents._fields)
    for name, value in found._asdict().items():
        assert read[name].dtype == value.dtype
        assert torch.equal(read[name], value)


def test_measures_are_those_of_whole_windows() -> None:
    torch.manual_seed(0)
    scale_D = torch.tensor([4.0, 2.0, 1.0, 0.0])
    latents_ND = torch.randn(1000, 4) * scale_D
    found = measure_latents(latents_ND, 64)
    whole = latents_ND[: 15 * 64]
    expected = latent_statistics(whole.unflatten(0, (15, 64)))
    assert {name: found[name] for name in expected} == expected
    variances = torch.linalg.svdvals(whole.double() - whole.double().mean(0)).square()
    assert found["spectrum"] == pytest.approx((variances / variances.sum()).tolist(), abs=1e-9)
    assert measure_latents(latents_ND[:40], 64)["within_sequence"] == pytest.approx(1.0)
