"""What is trained: the user's model and the reference step around it. Runs in the worker."""
