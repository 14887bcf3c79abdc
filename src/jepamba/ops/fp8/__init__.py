"""Matrix products in FP8 e4m3."""
