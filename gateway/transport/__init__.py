"""WIRE: bytes to and from an upstream; the only rooms that hold sockets."""
