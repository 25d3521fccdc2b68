"""What CUDA does where the CPU or meta kernels of PyTorch do something else."""
