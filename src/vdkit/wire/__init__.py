"""Protocols as bytes, both roles, without I/O."""
