"""Diagnostics tell good latents from bad ones; probes and compressors measure what they say."""

from __future__ import annotations

import bz2
import gzip
import lzma
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from jepamba.config import Jepa, Model, Quant
from jepamba.data.tokens import Tokens
from jepamba.errors import UserError
from jepamba.evaluate import compressors, diagnostics, stored
from jepamba.evaluate.diagnostics import latent_statistics
from jepamba.evaluate.probe import CLASSES, predict, r_squared, ridge, token_classes
from jepamba.jepa import JepaHeads, prediction_error
from jepamba.model import LanguageModel
from jepamba.text import ByteTokenizer, train_bpe
from tiny import TOPICS

TEXT = "\0".join(TOPICS[:60])
TOKENS = Tokens([np.frombuffer(b"\0" + TEXT.encode()[:4000], dtype=np.uint8).astype(np.uint16)], ByteTokenizer())


def small_model() -> LanguageModel:
    config = Model(vocab_size=256, embed_dim=12, d_model=16, n_layer=2, d_state=4, headdim=8, mlp_mult=2.0)
    return LanguageModel(config, Quant(large=256))


class Fixed(nn.Module):
    """A projector that says the configured values for any input."""

    def __init__(self, say: Any) -> None:
        super().__init__()
        self.say = say

    def forward(self, h_BTD: Tensor) -> Tensor:
        out: Tensor = self.say(h_BTD)
        return out


def heads_that_see(say: Any, steps: int = 2) -> JepaHeads:
    heads = JepaHeads(Jepa(rollout_steps=steps), 16)
    heads.projector = Fixed(say)
    return heads


def constant_in_time(h_BTD: Tensor) -> Tensor:
    return h_BTD.mean(1, keepdim=True).expand_as(h_BTD) * 10 + 1e-3 * h_BTD


def test_a_latent_that_is_constant_in_a_window_is_found_out() -> None:
    """What the published script's cosine of 0.996 hid (openai/parameter-golf, pull request 903)."""
    model = small_model()
    slow = diagnostics(model, heads_that_see(constant_in_time), TOKENS, 64, count=2048)
    free = diagnostics(model, heads_that_see(lambda h: h), TOKENS, 64, count=2048)
    assert slow["latents"]["within_sequence"] < 0.01
    assert free["latents"]["within_sequence"] > 0.5
    assert slow["prediction"][0]["copy_cosine"] > 0.99
    assert free["prediction"][0]["copy_cosine"] < 0.9


def test_within_share_is_zero_for_a_constant_and_one_for_equal_windows() -> None:
    def windows_alike(h: Tensor) -> Tensor:
        return torch.randn(1, h.shape[1], 16, generator=torch.Generator().manual_seed(0)).expand_as(h)

    assert diagnostics(small_model(), heads_that_see(windows_alike), TOKENS, 64, count=999)["latents"][
        "within_sequence"
    ] == pytest.approx(1.0, abs=1e-6)


def test_share_of_variance_within_windows() -> None:
    def share(z_BTE: Tensor) -> float:
        return latent_statistics(z_BTE)["within_sequence"]

    constant = torch.randn(64, 1, 8).expand(64, 100, 8)
    half = constant + torch.randn(64, 100, 8)
    assert share(torch.randn(64, 100, 8)) == pytest.approx(0.99, abs=0.01)
    assert share(half) == pytest.approx(0.5, abs=0.05)
    assert share(half * 3 + 40) == pytest.approx(share(half), rel=1e-3)
    assert share(torch.ones(2, 3, 4)) == 0


def test_share_of_the_mean_latent() -> None:
    z_BTE = torch.randn(8, 100, 8)
    z_BTE -= z_BTE.mean((0, 1))
    z_BTE /= z_BTE.square().mean().sqrt()
    for offset, share in ((0.0, 0.0), (1.0, 0.5), (3.0, 0.9)):
        assert latent_statistics(z_BTE + offset)["mean_share"] == pytest.approx(share, abs=1e-6)


def test_effective_rank_and_norm() -> None:
    def rank(r: int) -> Any:
        def say(h: Tensor) -> Tensor:
            z = torch.zeros_like(h)
            z[..., :r] = torch.randn(*h.shape[:2], r, generator=torch.Generator().manual_seed(3))
            return z

        return diagnostics(small_model(), heads_that_see(say), TOKENS, 64, count=3900)["latents"]

    for r in (1, 4, 16):
        assert rank(r)["effective_rank"] == pytest.approx(r, rel=0.05)
    assert rank(16)["norm"] == pytest.approx(4.0, rel=0.05)  # E|z| of 16 normal numbers is near √16
    assert rank(16)["width"] == 16


def test_a_perfect_predictor_has_cosine_one_and_error_zero() -> None:
    turn = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(0)))[0]

    def turning(h: Tensor) -> Tensor:
        z, out = torch.ones(h.shape[0], 16), []
        for _ in range(h.shape[1]):
            out.append(z)
            z = z @ turn
        return torch.stack(out, 1)

    heads = heads_that_see(turning, steps=3)
    heads.predictor, heads.pred_proj = Fixed(lambda z: z @ turn), nn.Identity()
    for row in diagnostics(small_model(), heads, TOKENS, 32, count=640)["prediction"]:
        assert row["cosine"] == pytest.approx(1.0, abs=1e-5)
        assert row["mse"] == pytest.approx(0.0, abs=1e-5)
        assert row["copy_mse"] > 0.1


def test_pairs_across_a_document_s_start_are_left_out() -> None:
    ids = np.full(65, 97, dtype=np.uint16)
    ids[::8] = 0

    def jumps_at_documents(h: Tensor) -> Tensor:
        return (torch.arange(h.shape[1]) // 8).float()[None, :, None].expand(h.shape[0], -1, 16).clone() + 1

    heads = heads_that_see(jumps_at_documents, steps=1)
    tokens = Tokens([ids], ByteTokenizer())
    assert diagnostics(small_model(), heads, tokens, 64)["prediction"][0]["copy_mse"] == pytest.approx(0.0)
    assert diagnostics(small_model(), heads, tokens, 64, reset=False)["prediction"][0]["copy_mse"] > 0.05


@pytest.mark.parametrize("form", [{"layer": 1}, {"action": True, "target_tokens": 3}], ids=str)
def test_the_error_of_the_predictions_is_that_of_training(form: dict[str, Any]) -> None:
    torch.manual_seed(3)
    model, heads = small_model(), JepaHeads(Jepa(rollout_steps=2, **form), 16)
    for parameter in heads.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    rows = diagnostics(model, heads, TOKENS, 64, count=640)["prediction"]
    tokens = torch.from_numpy(TOKENS.read(0, 640).astype(np.int64)).view(10, 64)
    with stored(model):
        found, _ = model.activations(tokens, tokens == 0)
        error = prediction_error(
            heads.step, heads.config, heads.latents(found), tokens == 0, action_BTD=heads.actions(found)
        )
    assert sum(row["mse"] for row in rows) / 2 == pytest.approx(error.item(), rel=1e-4)


def test_top_k_of_a_head_that_knows_frequencies() -> None:
    model = small_model()
    for parameter in model.parameters():
        parameter.data.zero_()
    counts = np.bincount(TOKENS.read(1, 3841), minlength=256)
    model.head.vocab_bias.master.data = torch.from_numpy(counts / counts.max()).float()
    found = diagnostics(model, None, TOKENS, 64, count=3840)
    assert found["tokens"] == 3840
    biases = torch.from_numpy(counts / counts.max()).float().bfloat16()
    for k in (1, 5):
        likeliest = biases.topk(k).indices.numpy()
        assert found[f"top{k}"] == pytest.approx(counts[likeliest].sum() / 3840, abs=0.01)
    assert found["top1"] <= found["top5"] <= found["top10"] < 1


def test_an_artifact_alone_gives_what_it_can() -> None:
    found = diagnostics(small_model(), None, TOKENS, 64, count=640)
    assert "prediction" not in found
    assert "h" not in found
    assert found["latents"]["of"] == "h"
    assert found["latents"]["norm"] == pytest.approx(math.sqrt(16), rel=0.01)  # h is RMS-normalised
    assert diagnostics(small_model(), None, TOKENS, 64, count=0) == {}


def test_the_training_state_of_model_and_heads_is_kept() -> None:
    model, heads = small_model(), JepaHeads(Jepa(projector="mlp-batchnorm"), 16)
    model.train()
    heads.train()
    before = {name: value.clone() for name, value in heads.state_dict().items()}
    found = diagnostics(model, heads, TOKENS, 64, count=640)
    assert [row["step"] for row in found["prediction"]] == [1, 2, 3]
    assert found["latents"]["of"] == "z"
    alone = diagnostics(model, None, TOKENS, 64, count=640)["latents"]
    assert found["h"] == {key: value for key, value in alone.items() if key != "of"}
    assert heads.training
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in heads.state_dict().items())


def test_short_text_gives_one_short_window() -> None:
    assert diagnostics(small_model(), None, Tokens([TOKENS.read(0, 30)], ByteTokenizer()), 64)["tokens"] == 29
    with pytest.raises(UserError, match="fewer than 2"):
        diagnostics(small_model(), None, Tokens([TOKENS.read(0, 1)], ByteTokenizer()), 64)


def test_ridge_recovers_a_linear_map_and_r_squared_is_that_of_the_mean_for_noise() -> None:
    x, w = torch.randn(4000, 5), torch.randn(5, 3)
    y = x @ w + 2.0
    weights = ridge(x, y)
    assert torch.allclose(weights[:5].float(), w, atol=0.01)
    assert r_squared(predict(x, weights), y, y.mean(0)) > 0.999
    noise = torch.randn(4000, 3)
    assert abs(r_squared(predict(x, ridge(x, noise)), noise, noise.mean(0))) < 0.01


def test_probe_sees_what_the_latents_know_and_the_token_does_not() -> None:
    """A latent that tells the next token's class gives the probe everything; the token before it does not."""
    classes = token_classes(ByteTokenizer(), 256)
    ids = torch.from_numpy(TOKENS.read(0, 3841).astype(np.int64))
    calls = iter(range(99))

    def oracle(h: Tensor) -> Tensor:
        start = next(calls) * h.shape[0] * 64
        ahead = classes[ids[start + 1 : start + 1 + h.shape[0] * 64]].view(h.shape[0], 64)
        return torch.nn.functional.one_hot(ahead, 16).float()

    probe = diagnostics(small_model(), heads_that_see(oracle), TOKENS, 64, count=3840)["probe"]
    assert probe["next_class"] > 0.999
    assert probe["next_class_majority"] <= probe["next_class_from_token"] + 0.02 < 0.95
    assert probe["next_embedding_r2"] > 0.05


def test_classes_of_tokens() -> None:
    tokenizer = train_bpe(["Hello World 12, again and again the same 99 words!"] * 9, 300)
    classes = token_classes(tokenizer, 310)
    assert len(classes) == 310
    assert CLASSES[int(classes[tokenizer.bos_id])] == "no text"
    assert CLASSES[int(classes[309])] == "no text"  # a row of the model beyond the tokenizer's symbols
    for text, name in (("a", "lower case"), ("H", "capital"), ("9", "digit"), (" ", "blank"), (",", "other")):
        token = next(i for i in range(4, tokenizer.vocab_size) if tokenizer.decode([i]) == text.encode())
        assert CLASSES[int(classes[token])] == name


def test_compressors_alone_and_with_history() -> None:
    text = TEXT.encode()
    test, history = text[:20_000], text[20_000:120_000]
    rows = {row["compressor"].split()[0]: row for row in compressors(test, history)}
    assert list(rows) == ["gzip", "bzip2", "xz", "zstd", "brotli"]
    assert rows["gzip"]["bytes"] == len(gzip.compress(test, 9))
    assert rows["bzip2"]["bytes"] == len(bz2.compress(test, 9))
    assert rows["xz"]["bytes"] == len(lzma.compress(test, preset=9 | lzma.PRESET_EXTREME))
    for row in rows.values():
        assert row["bpb"] == pytest.approx(8 * row["bytes"] / len(test))
        assert 1.5 < row["bpb"] < 5
        assert row["bpb_with_history"] == pytest.approx(8 * row["bytes_with_history"] / len(test))
    for name in ("xz", "zstd", "brotli"):
        assert rows[name]["bytes_with_history"] < rows[name]["bytes"]


def test_a_history_that_says_it_all_makes_the_text_nearly_free() -> None:
    text = TEXT.encode()[:60_000]
    for row in compressors(text[:9000], text):
        if row["compressor"].startswith(("xz", "zstd", "brotli")):
            assert row["bpb_with_history"] is not None
            assert row["bpb_with_history"] < 0.05
    alone = compressors(b"x")
    assert all(row["bpb_with_history"] is None and row["bytes_with_history"] is None for row in alone)
    with pytest.raises(UserError, match="no held-out text"):
        compressors(b"", b"history")


def test_compressors_report_progress() -> None:
    reports: list[str] = []
    compressors(b"some text", progress=lambda done, total, note="": reports.append(f"{done}/{total} {note}"))
    assert reports[0] == "0/5 gzip -9"
    assert reports[-1].startswith("5/5")
