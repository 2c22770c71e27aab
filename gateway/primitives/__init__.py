"""Scheduling, normalization and rollback: shared with `training`; import nothing of ours."""
