"""The contenders of benchmarks/layers.py, the cases and the targets."""
