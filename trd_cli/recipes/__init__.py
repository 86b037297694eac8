"""Recipes: TOML files that say what is run, read with all they extend and checked against the stages' own options."""
