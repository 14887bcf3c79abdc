"""The precision of products while a text is scored: set for a GPU alone, and put back whoever set it and how."""

from collections.abc import Iterator

import pytest
import torch

from jepamba.config import Model, Quant
from jepamba.data.tokens import tokens_in_memory
from jepamba.evaluate import calibrate, score_carried, score_plain, score_sliding
from jepamba.evaluate.adapted import score_adapted
from jepamba.evaluate.many import score_continuations, score_documents
from jepamba.evaluate.precision import scoring_precision
from jepamba.evaluate.windows import batch_tokens
from jepamba.model import LanguageModel
from jepamba.text import ByteTokenizer

matmul = torch.backends.cuda.matmul
SMALL = Model(vocab_size=257, embed_dim=12, d_model=16, n_layer=2, d_state=4, headdim=8)
CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def put_back() -> Iterator[None]:
    before = matmul.fp32_precision
    yield
    torch.set_float32_matmul_precision("highest")
    matmul.fp32_precision = before


def test_a_gpu_computes_in_tf32_and_a_cpu_in_fp32() -> None:
    with scoring_precision(CPU):
        assert matmul.fp32_precision != "tf32"
    with scoring_precision(GPU):
        assert matmul.fp32_precision == "tf32"
        # Where the older and the newer switch disagree, PyTorch raises an error.
        assert matmul.allow_tf32
        with scoring_precision(GPU):
            assert matmul.fp32_precision == "tf32"
        assert matmul.fp32_precision == "tf32"


@pytest.mark.parametrize("before", ["none", "ieee", "tf32"])
def test_the_precision_is_put_back_after_an_error(before: str) -> None:
    matmul.fp32_precision = before
    with pytest.raises(KeyError), scoring_precision(GPU):
        raise KeyError
    assert matmul.fp32_precision == before


@pytest.mark.parametrize("before", ["highest", "high"])
def test_the_older_switch_is_put_back(before: str) -> None:
    torch.set_float32_matmul_precision(before)
    with scoring_precision(GPU):
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == before


def test_every_score_is_computed_in_the_precision_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, model, seen = (
        tokens_in_memory(["A text of some length."], ByteTokenizer(True)),
        LanguageModel(SMALL, Quant(large=256)),
        set[str](),
    )
    forward = LanguageModel.forward

    def watched(self: LanguageModel, *inputs: object, **more: object) -> object:
        seen.add(matmul.fp32_precision)
        return forward(self, *inputs, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(LanguageModel, "forward", watched)
    # As if the model were on a GPU.
    monkeypatch.setattr("jepamba.evaluate.precision.scoring_precision", lambda device: scoring_precision(GPU))
    for work in (
        lambda: score_plain(model, tokens, 8),
        lambda: score_sliding(model, tokens, 8, stride=4),
        lambda: score_carried(model, tokens, 8),
        lambda: score_adapted(model, tokens),
        lambda: score_documents(model, [tokens], 8, carry=False, reset=True, temperature=1.0),
        lambda: score_continuations(model, [([1, 2], [3])], tokens.tokenizer, 8, temperature=1.0),
        lambda: calibrate(model, tokens, 8, 16),
    ):
        work()
        assert seen == {"tf32"}, work
        seen.clear()
    assert matmul.fp32_precision != "tf32"


def test_a_batch_is_as_long_as_the_device_needs_unless_it_is_given() -> None:
    assert [batch_tokens(0, device) for device in (CPU, GPU)] == [16_384, 65_536]
    assert [batch_tokens(100, device) for device in (CPU, GPU)] == [100, 100]
