"""From a recipe to its stages: the graph, what of it is done, and each stage in a process of its own."""
