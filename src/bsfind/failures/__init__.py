"""Recognises what goes wrong around a trial: out of memory, GPU faults, memory taken, GPU in use."""
