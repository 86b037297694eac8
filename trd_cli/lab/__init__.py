"""Studies of the ideas behind distillation on problems small enough to know the answer."""
