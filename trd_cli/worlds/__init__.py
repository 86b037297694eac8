"""Environments of many turns, each episode in a worker process that can be killed."""
