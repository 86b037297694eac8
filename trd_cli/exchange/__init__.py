"""Trajectories on their way to other tools and back."""
