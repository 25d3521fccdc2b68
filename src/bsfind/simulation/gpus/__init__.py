"""The GPUs that bsfind knows, their context memory, and how accurate predictions are."""
