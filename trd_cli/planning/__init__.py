"""What a recipe will need and what is wrong with it, found without a GPU: one file a topic, all giving findings."""
