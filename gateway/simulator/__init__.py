"""PRETEND: upstreams that fail on cue, traffic, and a clock that runs as fast as it can."""
