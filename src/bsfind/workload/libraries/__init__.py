"""What bsfind knows about libraries of models: how they build a model, and what it is called with."""
