"""Everything of `bsfind inspect`: what the memory of one step consists of."""
