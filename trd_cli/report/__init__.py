"""The report on a run: figures collected from its directory, tables, plots, and one page with all of them."""
