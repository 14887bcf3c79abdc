"""What lies between the matrix products, each as one pass: plain PyTorch on the CPU, one Triton kernel on a GPU."""
