"""What training on several GPUs needs of the tracer: one rank of many, whose others are absent."""
