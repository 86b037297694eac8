"""Trajectory sets: rows, shards, stage directories, and how they are opened, selected and shown."""
