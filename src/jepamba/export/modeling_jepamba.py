"""A jepamba model for Hugging Face transformers: Mamba-2 blocks in a U-Net, with a soft-capped head.

`jepamba export` writes this file and `layers_jepamba.py` next to the weights. They need PyTorch and transformers, and
nothing of jepamba.

Legend: B batch, T tokens, D width of the residual stream, V vocabulary.
"""

import inspect

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from .layers_jepamba import Block, Head, Skips, rms_norm

CACHE = "cache" if "cache" in inspect.signature(CausalLMOutputWithPast).parameters else "past_key_values"
"""Name of the cache in this version of transformers, as an argument and in outputs."""


class JepambaConfig(PretrainedConfig):
    """Settings of the model, with the names of jepamba's section `[model]`."""

    model_type = "jepamba"
    attribute_map = {"hidden_size": "d_model", "num_hidden_layers": "n_layer", "num_attention_heads": "heads"}

    def __init__(
        self,
        vocab_size=256,
        embed_dim=336,  # width of the embedding; projected to d_model if they differ
        tie=1,  # head: 0 separate; 1 tied to the embedding; 2 tied plus a correction; 3 tied after Linear and GELU
        d_model=640,
        n_layer=10,
        expand=1,  # inner width of the mixer as a multiple of d_model
        d_state=64,
        headdim=64,
        ngroups=1,  # the heads of a group share B and C
        d_conv=4,
        mlp="relu2",  # or "swiglu"
        mlp_mult=4.0,
        mlp_every=2,  # block i has an MLP if i % mlp_every == 0
        unet=True,  # skips from the first half of the blocks to the second
        self_skip=False,  # also a skip from the last block of the first half to its successor
        softcap="poly",  # or "tanh" or "off"
        cap=15.0,  # bound of the logits
        attention_every=0,  # block i has attention if i % attention_every == attention_every // 2; 0: none
        attention_window=256,
        chunk_size=64,  # affects speed only
        reset_at_bos=True,  # BOS starts another document, which reads nothing of the tokens before it
        bos_token_id=None,
        use_cache=True,
        **kwargs,
    ):
        self.vocab_size, self.embed_dim, self.tie = vocab_size, embed_dim, tie
        self.d_model, self.n_layer, self.expand = d_model, n_layer, expand
        self.d_state, self.headdim, self.ngroups, self.d_conv = d_state, headdim, ngroups, d_conv
        self.mlp, self.mlp_mult, self.mlp_every = mlp, mlp_mult, mlp_every
        self.unet, self.self_skip, self.softcap, self.cap = unet, self_skip, softcap, cap
        self.attention_every, self.attention_window = attention_every, attention_window
        self.chunk_size, self.reset_at_bos = chunk_size, reset_at_bos
        self.use_cache = use_cache
        # The head reads the embedding itself, so no two parameters are tied.
        super().__init__(**{"bos_token_id": bos_token_id, "tie_word_embeddings": False, **kwargs})

    @property
    def d_inner(self):
        """Inner width of a mixer."""
        return self.expand * self.d_model

    @property
    def heads(self):
        """Number of heads of a mixer."""
        return self.d_inner // self.headdim


class JepambaCache:
    """Recurrent state of a batch of texts, of constant size. A forward pass updates the cache that it is given."""

    is_compileable = is_croppable = False

    def __init__(self, layers):
        self.states = [None] * layers  # of each layer: a tuple of tensors (B, …); None before the first token
        self.is_linear = [True] * layers
        self.tokens = 0

    def get_seq_length(self, layer_idx=0):
        """Return the number of tokens that the state has read."""
        return self.tokens

    def reorder_cache(self, beam_idx):
        """Select rows of the batch, for beam search."""
        self.states = [tuple(value[beam_idx.to(value.device)] for value in state) for state in self.states]


class JepambaPreTrainedModel(PreTrainedModel):
    config_class = JepambaConfig
    base_model_prefix = "model"
    _is_stateful = True  # the state cannot go back, so assisted generation is refused

    def as_output(self, found, return_dict):
        """Return the outputs as an object, or as a tuple if the caller or the configuration wants one."""
        return found if (self.config.return_dict if return_dict is None else return_dict) else found.to_tuple()

    def resize_token_embeddings(self, *args, **kwargs):
        raise NotImplementedError("the vocabulary of a jepamba model is fixed: its head has a bias for each token")


class JepambaModel(JepambaPreTrainedModel):
    """The model without its head: from token ids to latents."""

    _keys_to_ignore_on_load_unexpected = [r"^head\."]

    def __init__(self, config):
        super().__init__(config)
        self.token_embed = nn.Embedding(config.vocab_size, config.embed_dim)
        if config.embed_dim != config.d_model:
            self.embed_proj = nn.Linear(config.embed_dim, config.d_model, bias=False)
        self.blocks = nn.ModuleList(Block(config, index) for index in range(config.n_layer))
        self.skips = Skips(config)
        self.post_init()

    def get_input_embeddings(self):
        return self.token_embed

    def set_input_embeddings(self, value):
        self.token_embed = value

    def forward(
        self,
        input_ids,
        attention_mask=None,
        use_cache=None,
        output_hidden_states=None,
        return_dict=None,
        cache=None,
        past_key_values=None,
    ):
        """Return the latents: the normed residual stream after the last block.

        Arguments:
            input_ids: (B, T) token ids.
            attention_mask: (B, T), or (B, T') with the tokens of the cache: 0 for padding, on the left or on the right.
            use_cache: Return the cache after the last token. Default: in evaluation mode, without padding on the right.
            output_hidden_states: Also return the embedded input and the residual stream after each block, normed.
            cache: State after the preceding tokens, which is updated. `past_key_values` is its older name.
        """
        cache = past_key_values if cache is None else cache
        reset_BT = self.document_starts(input_ids, attention_mask, cache)
        ends_in_padding = attention_mask is not None and not bool(attention_mask[:, -1].all())
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training and not ends_in_padding
        if ends_in_padding and (use_cache or cache is not None):
            raise ValueError("padding on the right has no cache: pad on the left (tokenizer.padding_side = 'left')")
        if use_cache and cache is None:
            cache = JepambaCache(len(self.blocks))

        x_BTD = self.token_embed(input_ids)
        if hasattr(self, "embed_proj"):
            x_BTD = self.embed_proj(x_BTD)
        x0_BTD = rms_norm(x_BTD)
        outputs = []
        for index, block in enumerate(self.blocks):
            x_BTD = self.skips(index, outputs) if outputs else x0_BTD
            x_BTD, state = block(x_BTD, x0_BTD, reset_BT, None if cache is None else cache.states[index])
            outputs.append(x_BTD)
            if cache is not None:
                cache.states[index] = state
        if cache is not None:
            cache.tokens += input_ids.shape[1]

        latents_BTD = rms_norm(x_BTD)
        hidden_states = (x0_BTD, *map(rms_norm, outputs)) if output_hidden_states else None
        found = BaseModelOutputWithPast(latents_BTD, hidden_states=hidden_states, **{CACHE: cache})
        return self.as_output(found, return_dict)

    def document_starts(self, input_ids, attention_mask, cache):
        """Return a (B, T) mask of the tokens that start a document: those after padding on the left, and BOS."""
        reset_BT = torch.zeros_like(input_ids, dtype=torch.bool)
        if self.config.reset_at_bos and self.config.bos_token_id is not None:
            reset_BT = input_ids == self.config.bos_token_id
        if attention_mask is None:
            return reset_BT
        tokens, read = input_ids.shape[1], 0 if cache is None else cache.tokens
        if attention_mask.dim() != 2 or attention_mask.shape[1] not in (tokens, read + tokens):
            raise ValueError(
                f"attention_mask has the shape {tuple(attention_mask.shape)}; it must be (batch, tokens), with or "
                f"without the {read} tokens of the cache"
            )
        mask = attention_mask.bool()
        # A mask without the tokens of the cache continues their text.
        starts = mask & ~F.pad(mask, (1, 0), value=mask.shape[1] < read + tokens)[:, :-1]
        if bool((starts.sum(1) > 1).any()):
            raise ValueError("attention_mask has padding inside a text; pad on the left or on the right only")
        return reset_BT | starts[:, -tokens:]


class JepambaForCausalLM(JepambaPreTrainedModel, GenerationMixin):
    """The language model. `logits` are before the temperature, which `generation_config.temperature` has."""

    def __init__(self, config):
        super().__init__(config)
        self.model = JepambaModel(config)
        self.head = Head(config)
        self.post_init()

    def get_input_embeddings(self):
        return self.model.token_embed

    def set_input_embeddings(self, value):
        self.model.token_embed = value

    def get_output_embeddings(self):
        return None

    def forward(
        self,
        input_ids,
        attention_mask=None,
        labels=None,
        use_cache=None,
        output_hidden_states=None,
        return_dict=None,
        logits_to_keep=0,
        cache=None,
        past_key_values=None,
        **loss_arguments,
    ):
        """Return the logits (B, T, V), in fp32, and the mean loss of `labels` in nats if they are given.

        Arguments:
            labels: (B, T), as `input_ids`: they are shifted here. −100 is not counted, nor is padding, nor the token
                after padding on the left, which nothing predicts.
            logits_to_keep: Return the logits of this many last tokens only, or those at a tensor of positions. 0: all.
        The other arguments are those of `JepambaModel.forward`.
        """
        cache = past_key_values if cache is None else cache
        out = self.model(input_ids, attention_mask, use_cache, output_hidden_states, return_dict=True, cache=cache)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.head(out.last_hidden_state[:, kept], self.model.token_embed.weight)
        loss = None
        if labels is not None:
            if attention_mask is not None:
                padding = attention_mask[:, -labels.shape[1] :] == 0
                labels = labels.masked_fill(padding | F.pad(padding, (1, 0))[:, :-1], -100)
            loss = self.loss_function(logits, labels, self.config.vocab_size, **loss_arguments)
        found = CausalLMOutputWithPast(loss, logits, hidden_states=out.hidden_states, **{CACHE: out.get(CACHE)})
        return self.as_output(found, return_dict)

    @classmethod
    def _supports_default_dynamic_cache(cls):
        return False  # `forward` makes the cache

    def prepare_inputs_for_generation(
        self,
        input_ids,
        cache=None,
        past_key_values=None,
        attention_mask=None,
        use_cache=None,
        logits_to_keep=1,
        **others,
    ):
        """Return the arguments of the next forward pass in `generate`: only the tokens that the cache has not read."""
        cache = past_key_values if cache is None else cache
        if cache is not None:
            input_ids = input_ids[:, cache.tokens :]
            if not input_ids.shape[1]:
                raise ValueError("with a cache, `generate` takes the whole text, also what the cache has read")
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "use_cache": use_cache,
            "logits_to_keep": logits_to_keep,
            CACHE: cache,
        }
