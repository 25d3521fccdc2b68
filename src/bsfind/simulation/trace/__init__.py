"""Traces a training step: operators, lifetimes, precision."""
