"""Benchmarks of the package, each compared with a lower bound measured on the same machine."""
