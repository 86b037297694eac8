"""Read and make problem sets: arithmetic word problems, benchmarks, and files or Hub datasets of others."""
