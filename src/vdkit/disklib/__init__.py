"""The kit's own API, shaped like VixDiskLib.

Connections are in :mod:`vdkit.disklib.connection`, open disks in :mod:`vdkit.disklib.handle`, VixDiskLib's
numbers in :mod:`vdkit.disklib.constants`. Below them: local disks by path (:mod:`vdkit.disklib.local`,
:mod:`vdkit.disklib.hosted`), how a new disk appears (:mod:`vdkit.disklib.publish`), disks through pipes
(:mod:`vdkit.disklib.streaming`), and the disk that comes back after a failure
(:mod:`vdkit.disklib.resuming`).
"""
