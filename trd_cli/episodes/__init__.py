"""Play episodes of many turns: what a model reads at each turn, and how a teacher's commands are replayed."""
