"""Studies and records, run as `python -m dynamic_confidence.benchmarks.<name>`."""
