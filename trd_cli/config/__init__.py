"""One frozen config a command: its flags, recipe keys, help text and `run.json` come from one declaration."""
