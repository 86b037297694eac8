"""What a run shows: figures collected from its directory, tables, plots, and one page with all of it."""
