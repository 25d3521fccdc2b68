"""What CUDA operators allocate besides their outputs: pure functions of shapes, dtypes and GPU."""
