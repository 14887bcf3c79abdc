"""Fake quantization, one kernel per weight. The PyTorch path is a quantizer's own `encode` and `decode`."""
