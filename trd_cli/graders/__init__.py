"""Graders: from a response and a reference to a verdict, in worker processes that can be killed."""
