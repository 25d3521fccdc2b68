"""What CUDA's operators refuse and meta kernels accept: dtypes, and tensors on another device."""
