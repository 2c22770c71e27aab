"""SENSE: what a failure means, what latency and quality are normal."""
