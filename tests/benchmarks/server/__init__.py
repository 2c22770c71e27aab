"""What the HTTP service costs, beside its peers in the same run."""
