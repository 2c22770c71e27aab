"""DECIDE: pure, synchronous, clock passed in; nothing here awaits."""
