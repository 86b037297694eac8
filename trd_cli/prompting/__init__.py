"""Make the prompts that models read: templates, tokens, and the way from a row to a prompt."""
