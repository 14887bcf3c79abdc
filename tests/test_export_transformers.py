"""The folder for transformers: the same logits, tokens and text as jepamba, without jepamba."""

from __future__ import annotations

import io
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from pydoc_data import topics
from typing import Any

import pytest
import sentencepiece
import torch
import torch.nn.functional as F
from torch import Tensor

import jepamba
from jepamba.artifact import Artifact, load_artifact, save_artifact
from jepamba.cli import main
from jepamba.config import Data, Model, Quant, Run, Train
from jepamba.errors import DivergedError
from jepamba.export import export_transformers
from jepamba.export.tokenizer import tokenizer_files
from jepamba.model import LanguageModel
from jepamba.text import ByteTokenizer, SentencePieceTokenizer, Tokenizer, train_bpe
from model_oracle import VARIANTS
from tiny import text_file, tiny

TEXTS = [topics.topics[name] for name in ("assert", "numbers", "strings", "import", "yield")]
ODD_TEXTS = [
    "",
    " a space first",
    "   three spaces first, \n  two here,  and there ",
    "<s> is text, as are </s>, <unk>, <pad> and <0x41>",
    "▁a symbol of SentencePiece▁ ▁",
    "é, 中文, 😀, \u0627\u0644, ﬁ\u00a0ligature, Ā",
    "-------- ======= 1234567890 aaaaaaa",
    "\ttab\n",
]
SMALL = {"embed_dim": 12, "d_model": 16, "n_layer": 4, "d_state": 4, "headdim": 4, "mlp_mult": 2.0, "chunk_size": 8}


@pytest.fixture(autouse=True, scope="module")
def _private_modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """transformers copies the code of a model into a cache before it imports it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        yield


def random_artifact(
    folder: Path, tokenizer: Tokenizer | None = None, *, reset: bool = True, temperature: float = 1.0, **model: Any
) -> Artifact:
    """An artifact none of whose parameters is at its initial value, as after training."""
    tokenizer = tokenizer or ByteTokenizer()
    run = Run(
        data=Data(tokenizer="bytes" if tokenizer.kind == "bytes" else "bpe", seq_len=40, reset=reset),
        model=Model(**{"vocab_size": tokenizer.vocab_size, **SMALL, **model}),
        quant=Quant(large=64),
        train=Train(steps=1, tokens_per_step=40, tokens_per_micro=40),
    )
    network = LanguageModel(run.model, run.quant)
    for parameter in network.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    save_artifact(folder / "artifact.jepa", network, run, tokenizer, temperature)
    return load_artifact(folder / "artifact.jepa")


def exported(artifact: Artifact, folder: Path, **settings: Any) -> Any:
    """The model of transformers."""
    from transformers import AutoModelForCausalLM

    export_transformers(artifact, folder / "hf")
    return AutoModelForCausalLM.from_pretrained(folder / "hf", trust_remote_code=True, **settings).eval()


def exported_tokenizer(tokenizer: Tokenizer, folder: Path) -> Any:
    """The tokenizer of transformers, which needs no code of ours."""
    from transformers import AutoTokenizer

    for name, content in tokenizer_files(tokenizer).files.items():
        (folder / name).write_bytes(content)
    return AutoTokenizer.from_pretrained(folder)


def ids_of(artifact: Artifact, batch: int, tokens: int) -> Tensor:
    """Random ids with a BOS here and there."""
    return torch.randint(artifact.model.config.vocab_size, (batch, tokens)).where(
        torch.rand(batch, tokens) > 0.05, artifact.tokenizer.bos_id
    )


@torch.no_grad()
def logits_of(artifact: Artifact, ids: Tensor, reset: Tensor | None = None) -> Tensor:
    return artifact.model.logits(artifact.model(ids, reset)[0])


def assert_same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "variant",
    [
        {"n_layer": 1, "chunk_size": 64},
        *VARIANTS[:1],
        *(pytest.param(v, marks=pytest.mark.slow) for v in VARIANTS[1:]),
    ],
    ids=str,
)
@torch.no_grad()
def test_logits_of_every_variant(tmp_path: Path, variant: dict[str, Any]) -> None:
    artifact = random_artifact(tmp_path, **variant)
    model = exported(artifact, tmp_path)
    ids = ids_of(artifact, 3, 45)
    expected = logits_of(artifact, ids, ids == artifact.tokenizer.bos_id)
    assert expected.std() > 0.01
    assert_same(model(ids).logits, expected)
    # In pieces, with the state carried: two passes of several tokens and steps of one.
    cache, pieces = None, []
    for piece in ids.split([7, 21, *[1] * 17], dim=1):
        out = model(piece, cache=cache)
        cache = out.cache
        pieces.append(out.logits)
    assert_same(torch.cat(pieces, dim=1), expected)
    assert cache.get_seq_length() == 45
    start = torch.randint(1, 256, (2, 9))
    greedy = {"do_sample": False, "max_new_tokens": 30, "eos_token_id": None}
    assert torch.equal(model.generate(start, **greedy), model.generate(start, **greedy, use_cache=False))


@torch.no_grad()
def test_the_cache_has_a_constant_size(tmp_path: Path) -> None:
    model = exported(random_artifact(tmp_path, attention_every=2, attention_window=5), tmp_path)
    sizes = []
    for tokens in (1, 3, 60):
        cache = model(torch.randint(1, 256, (2, tokens))).cache
        sizes.append([value.shape for state in cache.states for value in state])
    assert sizes[0] == sizes[1] == sizes[2]


@torch.no_grad()
def test_a_model_without_resets_reads_across_documents(tmp_path: Path) -> None:
    artifact = random_artifact(tmp_path, reset=False)
    model = exported(artifact, tmp_path)
    ids = ids_of(artifact, 2, 45)
    assert_same(model(ids).logits, logits_of(artifact, ids))
    resets = logits_of(artifact, ids, ids == artifact.tokenizer.bos_id)
    assert not torch.allclose(resets, logits_of(artifact, ids), atol=1e-3)
    model.config.reset_at_bos = True
    assert_same(model(ids).logits, resets)


@pytest.mark.parametrize(
    "variant", [pytest.param({}, marks=pytest.mark.slow), {"attention_every": 2, "attention_window": 5}], ids=str
)
@pytest.mark.parametrize("side", ["left", pytest.param("right", marks=pytest.mark.slow)])
def test_padding_changes_nothing(tmp_path: Path, variant: dict[str, Any], side: str) -> None:
    artifact = random_artifact(tmp_path, **variant)
    model = exported(artifact, tmp_path)
    texts = [torch.randint(1, 256, (length,)) for length in (20, 3, 11)]
    rooms = [(20 - len(ids), 0) if side == "left" else (0, 20 - len(ids)) for ids in texts]
    padded = [F.pad(ids, room, value=77) for ids, room in zip(texts, rooms, strict=True)]
    masks = [F.pad(torch.ones_like(ids), room) for ids, room in zip(texts, rooms, strict=True)]
    batch, mask = torch.stack(padded), torch.stack(masks)
    out = model(batch, attention_mask=mask, labels=batch)
    nats = []
    for row, ids in enumerate(texts):
        alone = logits_of(artifact, ids[None])[0]
        assert_same(out.logits[row][mask[row].bool()], alone)
        nats.append(F.cross_entropy(alone[:-1], ids[1:], reduction="none"))
    assert out.loss.item() == pytest.approx(torch.cat(nats).mean().item(), rel=1e-4)
    greedy = {"do_sample": False, "max_new_tokens": 12, "eos_token_id": None}
    if side == "left":
        new = model.generate(batch, attention_mask=mask, **greedy)[:, 20:]
        for row, ids in enumerate(texts):
            assert torch.equal(new[row], model.generate(ids[None], **greedy)[0, len(ids) :])
        return
    assert out.cache is None
    with pytest.raises(ValueError, match=r"pad on the left \(tokenizer.padding_side = 'left'\)"):
        model.generate(batch, attention_mask=mask, **greedy)


@torch.no_grad()
def test_wrong_masks_are_refused(tmp_path: Path) -> None:
    model = exported(random_artifact(tmp_path), tmp_path)
    ids = torch.randint(1, 256, (1, 5))
    with pytest.raises(ValueError, match="padding inside a text"):
        model(ids, attention_mask=torch.tensor([[1, 0, 1, 1, 1]]))
    with pytest.raises(ValueError, match=r"attention_mask has the shape \(1, 4\)"):
        model(ids, attention_mask=torch.ones(1, 4))
    whole = model(ids).logits
    cache = model(ids[:, :3]).cache
    # A mask may leave out what the cache has read.
    assert_same(model(ids[:, 3:4], cache=cache, attention_mask=torch.ones(1, 1)).logits, whole[:, 3:4])
    assert_same(model(ids[:, 4:], cache=cache, attention_mask=torch.ones(1, 5)).logits, whole[:, 4:])
    with pytest.raises(NotImplementedError, match="vocabulary of a jepamba model is fixed"):
        model.resize_token_embeddings(300)


def test_it_trains_and_is_saved_again(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    artifact = random_artifact(tmp_path, attention_every=2, attention_window=5, tie=2, mlp="swiglu")
    model = exported(artifact, tmp_path).train()
    ids = torch.randint(1, 256, (2, 30))
    before = model(ids, labels=ids)
    assert before.cache is None
    before.loss.backward()
    assert [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()] == []
    with torch.no_grad():
        for value in model.parameters():
            value -= 0.01 * value.grad
    after = model(ids, labels=ids).loss
    assert after < before.loss
    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", trust_remote_code=True)
    with torch.no_grad():
        assert_same(again(ids, labels=ids).loss, after)
        half = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", trust_remote_code=True, dtype=torch.bfloat16)
        assert half(ids, labels=ids).loss.item() == pytest.approx(after.item(), rel=0.05)
        backbone = AutoModel.from_pretrained(tmp_path / "hf", trust_remote_code=True)
        found = backbone(ids, output_hidden_states=True)
        expected, _ = artifact.model.activations(ids)
        assert_same(found.last_hidden_state, expected.h_BTD)
        assert len(found.hidden_states) == 5
        for layer in range(1, 5):
            assert_same(found.hidden_states[layer], expected.after(layer))
    config = AutoConfig.from_pretrained(tmp_path / "hf", trust_remote_code=True)
    assert (config.hidden_size, config.num_hidden_layers, config.d_inner) == (16, 4, 16)
    fresh = AutoModelForCausalLM.from_config(config, trust_remote_code=True)
    assert all(bool(value.isfinite().all()) for value in fresh.parameters())


def test_text_is_sampled_as_by_jepamba(tmp_path: Path) -> None:
    tokenizer = train_bpe(TEXTS, 400)
    artifact = random_artifact(tmp_path, tokenizer, temperature=0.25, vocab_size=420)
    model = exported(artifact, tmp_path)
    ids = torch.tensor([[tokenizer.bos_id, *tokenizer.encode("The ").tolist()]])
    text = jepamba.load(tmp_path / "artifact.jepa", "cpu").generate("The ", 40, temperature=0)
    greedy = model.generate(ids, do_sample=False, max_new_tokens=40)[0, ids.shape[1] :].tolist()
    assert tokenizer.decode(greedy, previous=ids[0].tolist()[-1]).decode(errors="replace") == text
    # Sampling has the temperature of the artifact, and never a control token or an id without a token.
    records = {"return_dict_in_generate": True, "output_scores": True}
    out = model.generate(ids, max_new_tokens=1, num_return_sequences=4000, **records)
    logits = logits_of(artifact, ids)[0, -1] / 0.25
    logits[[0, 2, 3, *range(tokenizer.vocab_size, 420)]] = -torch.inf
    assert_same(out.scores[0][0].softmax(-1), logits.softmax(-1))
    assert out.sequences[:, -1].unique().numel() > 10
    ended = model.generate(ids, do_sample=False, max_new_tokens=5, bad_words_ids=[[i] for i in range(420) if i != 1])
    assert ended[0, ids.shape[1] :].tolist() == [1], "BOS, the start of another document, ends a text"
    beams = {"do_sample": False, "num_beams": 3, "max_new_tokens": 12}
    assert torch.equal(model.generate(ids, **beams), model.generate(ids, **beams, use_cache=False))


def test_a_text_is_continued_from_its_cache(tmp_path: Path) -> None:
    model = exported(random_artifact(tmp_path), tmp_path)
    greedy = {"do_sample": False, "eos_token_id": None}
    first = model.generate(torch.randint(1, 256, (1, 9)), max_new_tokens=5, return_dict_in_generate=True, **greedy)
    longer = model.generate(first.sequences, max_new_tokens=6, **greedy)
    assert torch.equal(model.generate(first.sequences, max_new_tokens=6, cache=first.cache, **greedy), longer)
    with pytest.raises(ValueError, match="`generate` takes the whole text"):
        model.generate(first.sequences[:, -1:], max_new_tokens=6, cache=first.cache, **greedy)


def nfkc_tokenizer(**settings: Any) -> SentencePieceTokenizer:
    """A tokenizer as others train them: it normalises the text."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(" ".join(TEXTS).split("\n")),
        model_writer=model,
        minloglevel=3,
        **{"vocab_size": 450, "model_type": "bpe", "byte_fallback": True, "hard_vocab_limit": False, **settings},
    )
    return SentencePieceTokenizer(model.getvalue())


@pytest.mark.parametrize(
    "make",
    [
        ByteTokenizer,
        lambda: ByteTokenizer(separator=False),
        lambda: train_bpe(TEXTS, 600),
        nfkc_tokenizer,
        lambda: nfkc_tokenizer(add_dummy_prefix=False, pad_id=3),
        lambda: nfkc_tokenizer(remove_extra_whitespaces=False, byte_fallback=False),
        lambda: nfkc_tokenizer(normalization_rule_name="identity"),
    ],
    ids=["bytes", "bytes without separator", "jepamba", "nfkc", "no prefix", "keeps spaces", "identity"],
)
def test_ids_and_text_are_those_of_the_tokenizer(tmp_path: Path, make: Any) -> None:
    tokenizer = make()
    theirs = exported_tokenizer(tokenizer, tmp_path)
    start = [tokenizer.bos_id] if tokenizer.separator else []
    for text in [*TEXTS, *ODD_TEXTS]:
        ids = [*start, *tokenizer.encode(text).tolist()]
        assert theirs(text)["input_ids"] == ids, text[:40]
        assert theirs.encode(text, add_special_tokens=False) == ids[len(start) :]
        restored = theirs.decode(ids, skip_special_tokens=True)
        decoded = tokenizer.decode(tokenizer.encode(text), previous=tokenizer.bos_id)
        if tokenizer.kind == "bytes" or decoded == text.encode():
            assert restored == text
        elif theirs.unk_token_id not in ids:  # after which jepamba drops a space
            assert restored == tokenizer.decode(ids).decode()
    assert len(theirs) == tokenizer.vocab_size
    if start:
        assert theirs.bos_token_id == theirs.eos_token_id == tokenizer.bos_id
        batch = theirs(["a", "a longer text"], padding=True, return_tensors="pt")
        assert batch.keys() == {"input_ids", "attention_mask"}
        assert batch["attention_mask"][0].tolist() == sorted(batch["attention_mask"][0].tolist()), "padded on the left"


def test_new_text_keeps_its_first_space(tmp_path: Path) -> None:
    tokenizer = train_bpe(TEXTS, 600)
    theirs = exported_tokenizer(tokenizer, tmp_path)
    ids = theirs.encode("The assert statement", add_special_tokens=False)
    parts = [theirs.decode(ids[:3]), theirs.decode(ids[3:])]
    assert "".join(parts) == "The assert statement"
    assert any(theirs.decode([i]).startswith(" ") for i in ids)


def test_a_nul_is_the_separator_of_bytes(tmp_path: Path) -> None:
    assert exported_tokenizer(ByteTokenizer(), tmp_path)("a\0Ā")["input_ids"] == [0, 97, 0, 196, 128]


def test_a_tokenizer_that_json_cannot_express_is_left_to_sentencepiece(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = nfkc_tokenizer(model_type="unigram")
    random_artifact(tmp_path, tokenizer)
    assert main(["export", str(tmp_path / "artifact.jepa"), "--to", "transformers", str(tmp_path / "hf")]) == 0
    assert "read tokenizer.model with the package sentencepiece" in capsys.readouterr().out
    assert (tmp_path / "hf/tokenizer.model").read_bytes() == tokenizer.serialize()
    assert not (tmp_path / "hf/tokenizer.json").exists()


def test_a_model_with_fields_that_sentencepiece_skips_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blob = train_bpe(TEXTS, 300).serialize() + bytes([99 << 3 & 0x7F | 0x80 | 3, 6, 99 << 3 & 0x7F | 0x80 | 4, 6])
    random_artifact(tmp_path, SentencePieceTokenizer(blob))
    assert main(["export", str(tmp_path / "artifact.jepa"), "--to", "transformers", str(tmp_path / "hf")]) == 2
    assert "the SentencePiece model has fields of an unknown type" in capsys.readouterr().err
    assert not (tmp_path / "hf").exists()


WITHOUT_JEPAMBA = """
import json, sys
sys.modules["jepamba"] = None  # every import of it fails
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder = sys.argv[1]
plain = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
assert "transformers_modules" not in sys.modules, "the tokenizer ran code"
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
ids = tokenizer("The function ", return_tensors="pt")
assert plain("The function ")["input_ids"] == ids["input_ids"][0].tolist()
with torch.no_grad():
    logits = model(**ids).logits[0, -1]
new = model.generate(**ids, do_sample=False, max_new_tokens=20)[0, ids["input_ids"].shape[1]:]
print(json.dumps([ids["input_ids"].tolist(), logits.tolist(), tokenizer.decode(new, skip_special_tokens=True)]))
"""


@pytest.mark.slow
def test_a_trained_run_works_without_jepamba(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tiny(text_file(tmp_path), data__tokenizer="bpe", data__vocab=300)
    trained = jepamba.train(run, out=tmp_path / "run")
    command = ["export", str(tmp_path / "run"), "--to", "transformers", str(tmp_path / "hf")]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    files = {file.name: file.stat().st_size for file in (tmp_path / "hf").iterdir()}
    assert found == {"out": str(tmp_path / "hf"), "files": files}
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_JEPAMBA, str(tmp_path / "hf")],
        capture_output=True, text=True, check=True, env=environment, cwd=tmp_path,
    )  # fmt: skip
    ids, logits, text = json.loads(done.stdout.splitlines()[-1])
    assert ids == [trained.encode("The function ").tolist()]
    assert_same(torch.tensor(logits), logits_of(trained.artifact, torch.tensor(ids))[0, -1])
    assert text == trained.generate("The function ", 20, temperature=0)

    # A folder with files is never written to.
    assert main(command) == 2
    assert f"jepamba: {tmp_path / 'hf'}: exists and is not an empty folder" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "other"), "--to", "onnx"]) == 2
    assert "choose from" in capsys.readouterr().err


def test_the_example_of_the_manual_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).resolve().parents[1] / "docs/integrations.md").read_text(encoding="utf-8")
    section = re.search(r"^## transformers\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE)
    assert section is not None
    command, code = re.findall(r"^```\w*\n(.*?)^```", section[1], re.DOTALL | re.MULTILINE)
    (tmp_path / "runs/mine").mkdir(parents=True)
    random_artifact(tmp_path / "runs/mine", train_bpe(TEXTS, 400))
    monkeypatch.chdir(tmp_path)
    assert main(command.split()[1:]) == 0
    namespace: dict[str, Any] = {}
    exec(compile(code, "docs/integrations.md", "exec"), namespace)
    assert "The function " in capsys.readouterr().out
    assert 1 < namespace["loss"].item() < 20


def test_a_diverged_model_is_refused(tmp_path: Path) -> None:
    artifact = random_artifact(tmp_path)
    artifact.model.blocks[0].ssm_scale.master.data.fill_(math.nan)
    with pytest.raises(DivergedError):
        export_transformers(artifact, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def test_a_link_may_lead_to_a_folder_that_does_not_exist_yet(tmp_path: Path) -> None:
    artifact = random_artifact(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "hf")
    export_transformers(artifact, tmp_path / "link")
    assert (tmp_path / "hf/config.json").exists()
