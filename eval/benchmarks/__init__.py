"""Benchmarks: their declarations in YAML, and the functions that read their files into samples."""
