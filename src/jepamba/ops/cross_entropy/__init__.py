"""Cross-entropy of soft-capped logits with a z-loss, without the logits of all tokens in memory.

`reference` is the definition in float64. `sliced` computes loss and gradient for one slice of tokens at a time, with
`rows` for the logits of a slice, in plain PyTorch or with Triton kernels.
"""

from jepamba.ops.cross_entropy.pytorch import RowLosses, softcap
from jepamba.ops.cross_entropy.rows import row_losses, token_nats
from jepamba.ops.cross_entropy.sliced import Losses, capped_cross_entropy

__all__ = ["Losses", "RowLosses", "capped_cross_entropy", "row_losses", "softcap", "token_nats"]
