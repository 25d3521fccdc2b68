"""Everything of `bsfind inspect`: the composition of the memory of one step."""
