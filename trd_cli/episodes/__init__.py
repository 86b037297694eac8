"""Play episodes of many turns with a model: what it reads before each action, and what it does."""
