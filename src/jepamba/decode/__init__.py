"""The recurrent step of generation: one token in, the logits of the next out, with a state of constant size.

`PromptReader` in `jepamba.generate` is the plain step, which these are tested against. `cpu` runs streams with the
stored integers, compiled by Numba. `static_step` runs streams on tensors at fixed addresses. `graph` samples their
tokens, on a GPU with one launch per token.
"""
