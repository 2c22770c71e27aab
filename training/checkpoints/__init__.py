"""Checkpoints that are whole or absent: staged, written, verified, kept, returned to."""
