"""As much of torchvision as bsfind looks at."""
