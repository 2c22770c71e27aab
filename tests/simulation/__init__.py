"""Deterministic simulation at scale: random fault schedules, the real gateway, and its peers."""
