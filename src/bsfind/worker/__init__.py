"""The child process that runs the user's code, and the parent's end of the pipe to it."""
