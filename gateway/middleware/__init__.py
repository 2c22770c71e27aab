"""ENFORCE: one layer a file; each asks a policy and acts on the answer."""
