"""Find what a recipe will need and what is wrong with it, without a GPU: one file a topic, all giving findings."""
