"""What a real GPU says of bsfind's rules: `make real-gpu`, or `python -m benchmarks.real_gpu`."""
