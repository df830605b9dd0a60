"""Latency at batch 1 with and without early exit: measured (`dc-bench`), kept as a record, shown (`dc-report`)."""
