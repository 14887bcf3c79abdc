"""RMS norms, and the row-wise operations that are fused with them."""
