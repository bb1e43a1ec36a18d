"""The kit's own API, shaped like VixDiskLib."""
