"""Hashes of whole files and whole disks, taken while the bytes pass by."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from vdkit.block.copy import CopyProgress, copy
from vdkit.block.device import BlockDevice
from vdkit.block.store import Store
from vdkit.block.workers import CancelToken

_PIECE = 1 << 20
_ZEROES = bytes(_PIECE)


class NullWriter:
    """A sequential target that keeps nothing: to have a disk read, in parallel, for its bytes to be seen."""

    def __init__(self, name: str, capacity: int, unit: int = 1) -> None:
        self.name = name
        self.capacity = capacity
        self.unit = unit

    def encode(self, offset: int, data: memoryview) -> None:
        """Nothing is kept."""

    def append(self, encoded: None) -> None:
        """Nothing is kept."""

    def finish(self) -> None:
        """Nothing is kept."""

    def abort(self) -> None:
        """Nothing is kept."""


class _ContentWriter:
    """Hashes a disk in order; what is left out between pieces is zero."""

    def __init__(self, name: str, capacity: int) -> None:
        self.name = name
        self.capacity = capacity
        self.unit = 1
        self._hash = hashlib.sha256()
        self._position = 0

    def encode(self, offset: int, data: memoryview) -> tuple[int, bytes]:
        return offset, bytes(data)

    def append(self, encoded: tuple[int, bytes]) -> None:
        offset, data = encoded
        self._zeroes_up_to(offset)
        self._hash.update(data)
        self._position += len(data)

    def finish(self) -> None:
        self._zeroes_up_to(self.capacity)

    def abort(self) -> None:
        """Nothing is held."""

    def _zeroes_up_to(self, offset: int) -> None:
        while self._position < offset:
            step = min(offset - self._position, _PIECE)
            self._hash.update(memoryview(_ZEROES)[:step])
            self._position += step

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def content_sha256(
    device: BlockDevice,
    *,
    progress: Callable[[CopyProgress], None] | None = None,
    cancel: CancelToken | None = None,
) -> str:
    """SHA-256 of all bytes of a disk, zeroes included, as ``sha256sum`` of a raw copy would give it.

    What the allocation map calls zero is hashed without being read.
    """
    writer = _ContentWriter(device.name, device.capacity)
    copy(device, writer, target_is_zero=True, progress=progress, cancel=cancel)
    writer.finish()
    return writer.hexdigest()


def object_sha256(store: Store, name: str, *, cancel: CancelToken | None = None) -> tuple[int, str]:
    """Size in bytes and SHA-256 of an object of a store, every byte read."""
    digest = hashlib.sha256()
    with store.open(name) as device:
        size = device.capacity
        buffer = memoryview(bytearray(min(size, _PIECE)))
        for start in range(0, size, _PIECE):
            if cancel is not None:
                cancel.check()
            view = buffer[: min(_PIECE, size - start)]
            device.read_into(start, view)
            digest.update(view)
    return size, digest.hexdigest()
