"""A Mamba-2 of transformers as a model of llama.cpp with 4-bit weights, a peer of `bench/decode.py`.

Needs `pip install llama-cpp-python gguf`.
"""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import torch
from torch import Tensor, nn

NAMES = {
    "backbone.embeddings": "token_embd",
    "backbone.norm_f": "output_norm",
    "backbone.layers": "blk",
    "mixer.in_proj": "ssm_in",
    "mixer.out_proj": "ssm_out",
    "mixer.conv1d": "ssm_conv1d",
    "mixer.norm": "ssm_norm",
    "mixer.dt_bias": "ssm_dt.bias",
    "mixer.A_log": "ssm_a",
    "mixer.D": "ssm_d",
    ".norm.": ".attn_norm.",
}
"""Parts of a parameter's name in transformers and in a GGUF file, applied in this order."""


def tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The parameters by their names and in the layout of a GGUF file, fp32; the head is the embedding."""
    for name, parameter in model.named_parameters():
        if name.startswith("lm_head"):
            continue
        values = parameter.detach().float().cpu()
        if name.endswith("A_log"):
            values = -values.exp()
        if name.endswith(("A_log", ".D")):
            values = values.unsqueeze(1)
        elif name.endswith("mixer.norm.weight"):
            values = values.unsqueeze(0)
        for old, new in NAMES.items():
            name = name.replace(old, new)
        yield name, values.squeeze() if "conv1d.weight" in name else values


def write(model: Any, path: Path) -> None:
    """Write `model`, a `Mamba2ForCausalLM` with a tied head, as a GGUF file in fp32 without a tokenizer."""
    config = model.config
    writer = gguf.GGUFWriter(path, "mamba2")
    writer.add_context_length(2**20)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_ssm_conv_kernel(config.conv_kernel)
    writer.add_ssm_inner_size(config.expand * config.hidden_size)
    writer.add_ssm_state_size(config.state_size)
    writer.add_ssm_time_step_rank(config.num_heads)
    writer.add_ssm_group_count(config.n_groups)
    writer.add_layer_norm_rms_eps(config.layer_norm_epsilon)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("none")
    for name, values in tensors(model):
        writer.add_tensor(name, np.ascontiguousarray(values.numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def reader(model: Any, threads: int, bits: int = 4) -> Callable[[list[int]], Tensor]:
    """A function that reads the next tokens of one stream and returns the logits after the last, (1, V) fp32.

    All matrices, the embedding too, are Q4_0: 4.5 bits a weight. With `bits` 32 they stay fp32. Until the next call
    the logits are those of llama.cpp's own buffer.
    """
    log = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(log, ctypes.c_void_p(0))
    with tempfile.TemporaryDirectory() as folder:
        whole, path = Path(folder, "fp32.gguf"), Path(folder, "q4.gguf")
        write(model, whole)
        if bits == 4:
            settings = llama_cpp.llama_model_quantize_default_params()
            settings.ftype, settings.pure = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0, True
            if llama_cpp.llama_model_quantize(bytes(whole), bytes(path), ctypes.byref(settings)):
                raise RuntimeError("llama.cpp could not quantize the model")
        loading = llama_cpp.llama_model_default_params()
        loading.use_mmap = False
        loaded = llama_cpp.llama_model_load_from_file(bytes(path if bits == 4 else whole), loading)
    if not loaded:
        raise RuntimeError("llama.cpp could not load the model")
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx, settings.n_threads, settings.n_threads_batch = 2**20, threads, threads
    context = llama_cpp.llama_init_from_model(loaded, settings)
    vocab = model.config.vocab_size

    def read(ids: list[int]) -> Tensor:
        # The callback must outlive the model.
        assert log is not None
        # The batch has no reference to them.
        tokens = (llama_cpp.llama_token * len(ids))(*ids)
        if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(tokens, len(ids))):
            raise RuntimeError("llama.cpp could not read the tokens")
        return torch.from_numpy(np.ctypeslib.as_array(llama_cpp.llama_get_logits(context), shape=(1, vocab)))

    return read
