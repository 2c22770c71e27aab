"""TELL: listeners that turn events into log lines, metrics and traces."""
