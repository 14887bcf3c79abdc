"""The recurrent step of generation: one token in, the logits of the next out, with a state of constant size.

`PromptReader` in `jepamba.generate` is the plain step, which these are tested against. `cpu` runs one stream with the
stored integers, compiled by Numba. `static_step` runs many streams on tensors at fixed addresses, and `graph` makes it
one launch per token on a GPU.
"""
