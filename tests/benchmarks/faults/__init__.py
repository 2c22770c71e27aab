"""The fault wall against the peers: `python -m tests.benchmarks.faults`."""
