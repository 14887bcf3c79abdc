"""The short causal convolution with SiLU."""
