"""KEEP: where answers and feedback are stored."""
