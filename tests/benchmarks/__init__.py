"""What the gateway costs, measured: `python -m tests.benchmarks`. Nothing here is a test."""
