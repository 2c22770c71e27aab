"""What the library costs its caller, beside its peers in the same run."""
