"""Cross-entropy of soft-capped logits with a z-loss, without ever holding the logits of all tokens.

`reference` is the definition in float64. `sliced` computes the loss and its gradient a slice of tokens at a time;
`rows` is what it does over one slice of logits, in plain PyTorch or by Triton kernels.
"""

from jepamba.ops.cross_entropy.pytorch import RowLosses, softcap
from jepamba.ops.cross_entropy.rows import row_losses, token_nats
from jepamba.ops.cross_entropy.sliced import Losses, capped_cross_entropy

__all__ = ["Losses", "RowLosses", "capped_cross_entropy", "row_losses", "softcap", "token_nats"]
