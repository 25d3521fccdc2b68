"""What the terminal sees: one file per command, each option defined once, the console."""
