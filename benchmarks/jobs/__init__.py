"""What `benchmarks/run.py` measures, a job a file."""
