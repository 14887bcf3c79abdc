"""Cross-entropy of soft-capped logits."""
