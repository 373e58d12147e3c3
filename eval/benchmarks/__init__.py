"""Benchmarks as declared data, and the functions that read their files."""
