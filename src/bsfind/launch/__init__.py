"""A training command of the user's as the trial: run with one batch size after another, and watched."""
