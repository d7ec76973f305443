"""The design that the benchmark compares with."""
