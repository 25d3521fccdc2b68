"""Explaining an out-of-memory error from the log that holds it. Pure text work: no torch, no GPU."""
