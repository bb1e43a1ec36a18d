"""The kit's own API, shaped like VixDiskLib.

``connect`` and the disks it opens are in :mod:`vdkit.disklib.connection`, local disks in
:mod:`vdkit.disklib.local`, the disk that comes back after a failure in :mod:`vdkit.disklib.resuming`.
"""
