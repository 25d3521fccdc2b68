"""Predicts a training run without a GPU."""
