"""Decides which batch size to try next, when to stop, and what to recommend."""
