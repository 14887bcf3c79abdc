"""Generation: the recurrence is the parallel pass, the seed decides, and text comes in whole characters."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from jepamba.artifact import load_artifact, save_artifact
from jepamba.config import Data, Model, Quant, Run, Train
from jepamba.errors import UserError
from jepamba.generate import PromptReader, Sampler, generate, generate_many
from jepamba.model import LanguageModel
from jepamba.text import ByteTokenizer, Tokenizer, train_bpe

BPE = train_bpe(["The quick brown fox — naïve, 日本語 — jumps over the lazy dog."] * 9, 300)


def small_model(vocab: int = 256, **settings: Any) -> LanguageModel:
    shape: dict[str, Any] = {"embed_dim": 12, "d_model": 16, "n_layer": 3, "d_state": 4, "headdim": 8, "mlp_mult": 2.0}
    model = LanguageModel(Model(vocab_size=vocab, **(shape | settings)), Quant(large=256))
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def saying(text: bytes) -> LanguageModel:
    """A byte model that, after any token, gives nearly all probability to the byte that follows it in `text`."""
    model = small_model(tie=0, embed_dim=256, d_model=256, headdim=64, n_layer=1, softcap="off")
    for name, parameter in model.named_parameters():
        if "mixer.out_proj" in name or "mlp" in name:
            parameter.data.zero_()
    model.token_embed.master.data = torch.eye(256)
    model.head.separate.weight.master.data.zero_()
    model.head.vocab_bias.master.data.zero_()
    for one, after in itertools.pairwise(text):
        model.head.separate.weight.master.data[after, one] = 5.0
    return model


@pytest.mark.parametrize("settings", [{}, {"tie": 3, "mlp": "swiglu", "expand": 2, "ngroups": 2, "chunk_size": 5}])
@pytest.mark.parametrize("pieces", [[1] * 40, [17, 1, 1, 5, 16]])
def test_teacher_forced_steps_equal_the_parallel_pass(settings: dict[str, Any], pieces: list[int]) -> None:
    model = small_model(**settings).eval()
    tokens = torch.randint(256, (1, 40))
    with torch.no_grad():
        whole = model.logits(model(tokens)[0])[0]
    reader, position = PromptReader(model), 0
    for length in pieces:
        step = reader.read(tokens[0, position : position + length].tolist())
        position += length
        assert (step - whole[position - 1]).abs().max() < 1e-4
    assert position == 40


def test_a_long_prompt_is_read_in_pieces_without_a_trace() -> None:
    model = small_model().eval()
    ids = torch.randint(256, (2500,))
    with torch.no_grad():
        whole = model.logits(model(ids[None])[0][0, -1])
    assert (PromptReader(model).read(ids.tolist()) - whole).abs().max() < 1e-4


def test_state_is_constant_in_size() -> None:
    reader = PromptReader(small_model())
    sizes = []
    for _ in range(5):
        reader.read([65] * 300)
        assert reader.state is not None
        sizes.append(sum(tensor.untyped_storage().nbytes() for layer in reader.state for tensor in layer))
    assert max(sizes) <= sizes[0]


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), ByteTokenizer(False), BPE], ids=["bytes", "shards", "bpe"])
def test_the_seed_decides_and_nothing_else(tokenizer: Tokenizer) -> None:
    model = small_model(tokenizer.vocab_size)

    def text(seed: int) -> str:
        return "".join(generate(model, tokenizer, "The quick", 30, seed=seed))

    before = torch.get_rng_state()
    one = text(1)
    torch.manual_seed(99)
    assert text(1) == one
    assert text(2) != one
    torch.set_rng_state(before)
    text(3)
    assert torch.equal(torch.get_rng_state(), before)


def test_greedy_follows_the_likeliest_token() -> None:
    model = saying(b"abcdea")
    for settings in ({"temperature": 0.0}, {"temperature": 1e-6}, {"top_k": 1}, {"top_p": 1e-9}):
        assert "".join(generate(model, ByteTokenizer(), "xa", 9, **settings)) == "bcdeabcde"


def test_greedy_equals_the_parallel_argmax() -> None:
    model = small_model().eval()
    pieces = generate(model, ByteTokenizer(False), "Hello", 30, temperature=0)
    written = "".join(pieces)
    ids = list(b"Hello")
    for _ in range(30):
        with torch.no_grad():
            ids.append(int(model.logits(model(torch.tensor([ids]))[0][0, -1]).argmax()))
    assert written == bytes(ids[5:]).decode("utf-8", "replace")


def test_top_k_and_top_p_keep_only_the_likeliest() -> None:
    logits = torch.full((256,), -9.0)
    logits[[97, 98, 99]] = torch.tensor([8.0, 7.0, 6.0])  # 0.665, 0.245, 0.090 and crumbs

    def drawn(count: int, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> str:
        draw = Sampler(ByteTokenizer(), small_model(), temperature, top_k, top_p, seed=4)
        return "".join(chr(draw(logits)) for _ in range(count))

    for settings, expected in (
        ({"top_k": 2}, "ab"), ({"top_k": 3}, "abc"), ({"top_p": 0.5}, "a"), ({"top_p": 0.7}, "ab"),
        ({"top_p": 0.92}, "abc"), ({"top_k": 3, "top_p": 0.7}, "ab"),
    ):  # fmt: skip
        assert set(drawn(200, **settings)) == set(expected)
    assert drawn(3000).count("a") / 3000 == pytest.approx(0.665, abs=0.03)
    assert drawn(3000, temperature=100.0, top_k=3).count("a") / 3000 == pytest.approx(1 / 3, abs=0.04)


def test_bos_ends_the_text_and_other_controls_are_never_drawn() -> None:
    assert "".join(generate(saying(b"abc\0xyz"), ByteTokenizer(), "a", 50, temperature=0)) == "bc"
    assert "".join(generate(saying(b"abc\0xyz"), ByteTokenizer(False), "a", 5, temperature=0)) == "bc\0xy"
    model = small_model(310)  # ten rows more than the tokenizer has pieces
    for parameter in model.parameters():
        parameter.data.zero_()
    model.head.vocab_bias.master.data[[0, 2, 3, *range(BPE.vocab_size, 310)]] = 9.0
    model.head.vocab_bias.master.data[1] = -99.0
    pieces = list(generate(model, BPE, "The", 100))
    assert pieces
    assert not any("<" in piece and ">" in piece for piece in pieces)


def test_texts_of_a_list_end_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    model = saying(b"abc\0xyzxyz")
    steps: list[int] = []
    stepped = LanguageModel.logits
    monkeypatch.setattr(LanguageModel, "logits", lambda *given: steps.append(len(given[1])) or stepped(*given))
    monkeypatch.setattr("jepamba.generate.supports_cpu_step", lambda _: False)
    texts = generate_many(model, ByteTokenizer(), ["a", "c", "x"], 50, temperature=0)
    assert texts == ["bc", "", "yz" + "xyz" * 16]
    steps.clear()
    assert generate_many(model, ByteTokenizer(), ["a", "c", "b"], 50, temperature=0) == ["bc", "", "c"]
    assert steps[3:] == [3, 3]  # after the prompts: no step when all texts have ended
    monkeypatch.setattr("jepamba.generate._STREAMS", 2)
    assert generate_many(model, ByteTokenizer(), ["a", "c", "b"], 50, temperature=0) == ["bc", "", "c"]
    assert generate_many(model, ByteTokenizer(), [], 50) == []
    with pytest.raises(UserError, match="seed = 18446744073709551616: must fit in 64 bits"):
        generate_many(model, ByteTokenizer(), ["a", "b"], 50, seed=2**64 - 1)


def test_characters_come_whole() -> None:
    text = "a日é😀b"
    model = saying(text.encode())
    pieces = list(generate(model, ByteTokenizer(), "a", len(text.encode()) - 1, temperature=0))
    assert pieces == ["日", "é", "😀", "b"]
    cut = list(generate(model, ByteTokenizer(), "a", 2, temperature=0))
    assert cut == ["\N{REPLACEMENT CHARACTER}"]


def test_pieces_join_to_what_the_tokenizer_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model(BPE.vocab_size)
    sampled: list[int] = []
    sample = Sampler.sample

    def noting(self: Sampler, logits_BV: torch.Tensor, uniform_B: torch.Tensor) -> torch.Tensor:
        tokens_B = sample(self, logits_BV, uniform_B)
        sampled.extend(tokens_B.tolist())
        return tokens_B

    monkeypatch.setattr(Sampler, "sample", noting)
    written = "".join(generate(model, BPE, "", 80, seed=5))
    text = sampled[:-1] if sampled[-1] == BPE.bos_id else sampled
    assert len(text) > 20
    assert written == BPE.decode(text, previous=BPE.bos_id).decode("utf-8", "replace")


def test_an_artifact_generates_what_its_model_did(tmp_path: Any) -> None:
    model = small_model(BPE.vocab_size)
    run = Run(
        data=Data(seq_len=8), model=model.config, quant=model.quant,
        train=Train(steps=1, tokens_per_step=8, tokens_per_micro=8),
    )  # fmt: skip
    save_artifact(tmp_path / "a.jepa", model, run, BPE)
    loaded = load_artifact(tmp_path / "a.jepa")
    texts = ["".join(generate(m, t, "The", 40, seed=1)) for m, t in ((model, BPE), (loaded.model, loaded.tokenizer))]
    assert texts[0] == texts[1] != ""


def test_a_suspended_generator_leaves_the_caller_alone() -> None:
    model = small_model()
    model.train()
    pieces = generate(model, ByteTokenizer(False), "x", 5, top_k=1)
    next(pieces)
    assert model.training
    assert not torch.is_inference_mode_enabled()
    model(torch.zeros(1, 3, dtype=torch.int64))[0].sum().backward()


@pytest.mark.parametrize(
    "settings",
    [
        {"tokens": -1}, {"temperature": -0.1}, {"temperature": float("nan")}, {"temperature": float("inf")},
        {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}, {"top_p": float("nan")}, {"seed": 2**64},
    ],
    ids=str,
)  # fmt: skip
def test_bad_values_are_refused_at_once(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(settings))):
        generate(small_model(), ByteTokenizer(), "x", **({"tokens": 5} | settings))


def test_bad_combinations_are_refused_at_once() -> None:
    with pytest.raises(UserError, match="empty prompt"):
        generate(small_model(), ByteTokenizer(False), "", 5)
    with pytest.raises(UserError, match="symbols"):
        generate(small_model(), BPE, "x", 5)
    with pytest.raises(UserError, match="NUL"):
        generate(small_model(), ByteTokenizer(), "a\0b", 5)
    assert list(generate(small_model(), ByteTokenizer(), "", 0)) == []
