"""Lets user code see a CUDA device: `torch.cuda`, device names, tensor types."""
