"""vdkit: the open Virtual Disk Development Kit."""

__version__ = "0.1.0.dev0"
