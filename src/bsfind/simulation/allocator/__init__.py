"""The caching allocator of PyTorch, address for address, without torch."""
