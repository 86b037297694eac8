"""What a model is shown: templates, tokens, and the way from a row to a prompt."""
