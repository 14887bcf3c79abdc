"""The operators between the matrix products: plain PyTorch on the CPU, fused Triton kernels on a GPU.

Each has a folder with its PyTorch path, its Triton path, and `reference.py` where the PyTorch path is not itself the
plain formula. `norms`, `predictor`, `linear` and `mixer` have none: `pytorch.py` in float64 is the reference for their
kernels. The tests compare it in turn with the formulas written out: for `mixer` those of `tests/model_oracle.py`.
`fake_quantize` has kernels only, which give the bits of the quantizers in `quant`.
"""
