"""Scores of a model over benchmarks, their intervals, and the comparison of two evaluations."""
