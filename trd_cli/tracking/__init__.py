"""Figures of a run for trackers (wandb, trackio), sent by a process of their own as stages end."""
