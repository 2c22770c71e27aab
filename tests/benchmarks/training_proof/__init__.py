"""What becomes of a training run in which something breaks."""
