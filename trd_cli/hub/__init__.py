"""Names of sets and files on the Hugging Face Hub, and the way from a name to files on this machine."""
