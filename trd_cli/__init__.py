"""Trajectory-Refined Distillation: data generation, grading and training over Parquet trajectory shards."""

__version__ = "0.1.0"
