"""CALL: one target a provider; quirks of backends and models are data."""
