"""What an unknown setting is likely to mean: a name in other programs, a name of nothing here, a misspelling."""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches

OTHER_NAMES = {
    "model.d_model": "n_embd hidden_size hidden_dim dim embedding_dim embed_size model_dim width",
    "model.n_layer": "num_layers n_layers num_hidden_layers layers depth num_blocks n_blocks",
    "model.d_state": "state_size state_dim ssm_state_size mamba_d_state",
    "model.headdim": "head_dim head_size mamba_headdim mamba_d_head",
    "model.ngroups": "n_groups num_groups mamba_n_groups",
    "model.d_conv": "conv_kernel conv_kernel_size conv_width mamba_d_conv",
    "model.chunk_size": "chunk mamba_chunk_size",
    "model.attention_window": "sliding_window window_size",
    "model.mlp_mult": "mlp_ratio ffn_mult",
    "model.mlp": "hidden_act activation activation_function hidden_activation",
    "model.tie": "tie_embeddings tie_word_embeddings tied_embeddings",
    "model.cap": "logit_softcap logits_soft_cap final_logit_softcapping",
    "data.seq_len": "block_size context_length context_size ctx_len n_ctx max_length max_seq_len max_seq_length "
    "max_position_embeddings n_positions sequence sequence_len sequence_length seq_length window",
    "data.vocab": "vocab_size n_vocab vocabulary vocabulary_size",
    "data.train": "dataset dataset_path train_data train_data_dir train_file train_path data_dir data_path",
    "data.val": "val_data valid_data eval_data val_file validation_file val_path",
    "data.holdout": "val_fraction val_split val_split_fraction validation_split validation_split_percentage",
    "data.column": "text_column text_column_name text_field",
    "data.tokenizer": "tokenizer_name tokenizer_dir tokenizer_path",
    "data.cache": "cache_dir",
    "train.tokens_per_step": "batch_size global_batch_size total_batch_size train_batch_size",
    "train.tokens_per_micro": "micro_batch_size device_batch_size per_device_train_batch_size",
    "train.steps": "max_steps max_iters num_iterations num_steps n_steps train_steps total_steps iterations iters",
    "train.tokens": "max_tokens total_tokens num_tokens train_tokens",
    "train.seconds": "max_seconds max_time time_limit max_wallclock_seconds",
    "train.precision": "dtype bf16 fp16 mixed_precision amp torch_dtype",
    "train.threads": "num_threads n_threads cpu_threads",
    "train.init_from": "checkpoint_dir pretrained pretrained_model init_checkpoint model_name_or_path",
    "train.val_every": "eval_every eval_interval eval_steps val_interval val_loss_every",
    "train.checkpoint_every": "save_every save_interval save_steps checkpoint_interval",
    "train.keep_checkpoints": "save_total_limit",
    "train.track": "wandb report_to wandb_log logger logger_name",
    "train.seed": "random_seed manual_seed",
    "optim.muon_lr": "learning_rate lr max_lr peak_lr matrix_lr",
    "optim.adam_lr": "embedding_lr scalar_lr",
    "optim.muon_weight_decay": "weight_decay wd",
    "optim.adam_beta1": "beta1",
    "optim.adam_beta2": "beta2",
    "optim.adam_eps": "eps epsilon adam_epsilon",
    "optim.muon_momentum": "momentum",
    "optim.grad_clip": "clip_grad gradient_clip gradient_clipping max_grad_norm max_norm clip gradient_clip_val",
    "optim.warmdown": "warmdown_ratio cooldown",
    "quant.bits": "n_bits nbits weight_bits quantize quantization load_in_4bit load_in_8bit",
    "quant.bit_allocation": "widths",
    "eval.prompts": "prompt",
    "eval.sample_tokens": "max_new_tokens",
}
"""For each setting, the last parts of its names in other programs and in earlier versions of this one."""

ABSENT = {
    "there is no dropout: weight decay regularises (optim.muon_weight_decay, optim.adam_weight_decay)": "dropout "
    "dropout_rate attn_dropout attention_dropout resid_dropout residual_dropout hidden_dropout embd_dropout "
    "embedding_dropout attn_pdrop resid_pdrop embd_pdrop hidden_dropout_prob",
    "training has no temperature: it is measured at the end (eval.calibrate_tokens), and `jepamba generate` and "
    "`jepamba eval` have --temperature": "temperature temp",
    "`jepamba generate` has it as a flag": "top_k top_p",
    "the number of heads is model.expand * model.d_model / model.headdim": "n_head n_heads num_heads "
    "num_attention_heads num_key_value_heads n_kv_head nhead",
    "the learning rate has no warm-up; optim.muon_momentum_steps warms up the momentum": "warmup warmup_steps "
    "warmup_iters warmup_ratio warmup_tokens lr_warmup_steps",
    "the learning rate falls linearly to 0 over the last optim.warmdown of the budget": "lr_scheduler "
    "lr_scheduler_type scheduler schedule min_lr decay_lr final_lr_frac",
    "there is one choice: Muon for matrices, AdamW for the rest": "optimizer optim optimizer_name optimizer_type",
    "fine-tuning trains all weights (train.init_from)": "lora lora_r lora_alpha lora_rank lora_dropout",
    "blocks are not compiled, since the C++ kernels are faster on a CPU; delete the line": "compile torch_compile",
    "each window starts with an empty state; leave it out": "carry_state",
    "integers have one scale per row, that of its largest magnitude; leave it out": "scale group",
    "the batches are always prefetched": "num_workers dataloader_num_workers",
    "a budget is in steps, seconds or tokens: train.tokens": "epochs num_epochs num_train_epochs n_epochs",
    "the width of the MLP is model.mlp_mult * model.d_model": "intermediate_size d_intermediate ffn_dim d_ff mlp_dim "
    "ffn_hidden_size mlp_hidden_size",
    "a step has train.tokens_per_step / train.tokens_per_micro micro-batches": "gradient_accumulation "
    "gradient_accumulation_steps grad_accum grad_accum_steps accumulate_grad_batches",
    "torchrun starts one process for each GPU": "devices gpus num_gpus n_gpu nproc world_size num_nodes",
    "--out names the folder of the run": "output_dir out_dir save_dir run_dir run_name log_dir",
    "`jepamba resume` continues a run": "resume resume_from_checkpoint",
}
"""What to say of names of other programs that have no setting here."""

_MEANT = {name: setting for setting, names in OTHER_NAMES.items() for name in names.split()}
_ABSENT = {name: reason for reason, names in ABSENT.items() for name in names.split()}


def suggestion(name: str, known: Collection[str], prefix: str = "") -> str:
    """Return what the unknown `name` is likely to mean, as the end of a message; an empty text if nothing is close.

    Arguments: `name`, a setting or another flag; `known`, what can be given; `prefix`, what stands before each name.
    """
    tails = {other.rpartition(".")[2]: other for other in reversed(list(known))}
    tail = name.rpartition(".")[2]
    plain = tail.replace("-", "_").lower()
    meant = _MEANT.get(plain)
    if meant in known:
        return f"did you mean {prefix}{meant}?"
    if tail in tails:
        return f"did you mean {prefix}{tails[tail]}?"
    if plain in _ABSENT and "train.steps" in known:
        return _ABSENT[plain]
    close = get_close_matches(name, list(known), 1, 0.6)
    close = close or [tails[other] for other in get_close_matches(tail, list(tails), 1, 0.75)]
    return f"did you mean {prefix}{close[0]}?" if close else ""
