"""Push trajectory sets, runs and checkpoints to the Hugging Face Hub, with a card."""
