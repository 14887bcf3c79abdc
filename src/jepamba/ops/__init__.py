"""The operators between the matrix products: plain PyTorch on the CPU, fused Triton kernels on a GPU."""
