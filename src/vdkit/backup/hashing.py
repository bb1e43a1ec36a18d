"""Hashes of whole files and whole disks, taken while the bytes pass by."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

from vdkit.block.copy import CopyProgress, copy
from vdkit.block.device import BaseWritableDevice, BlockDevice, WritableDevice
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


class HashedStore:
    """A store that hashes what is written to the objects it creates.

    The hash is of the bytes as they were meant, before any disk or network could change them: that is what
    makes a later verification worth something.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._made: dict[str, _HashedDevice] = {}

    @property
    def name(self) -> str:
        return self._store.name

    def sha256(self, name: str) -> tuple[int, str]:
        """Size and hash of an object that was made here; one that was not written in order is read again."""
        made = self._made[name]
        if made.in_order:
            return made.written, made.hexdigest()
        return object_sha256(self._store, name)

    def open(self, name: str) -> BlockDevice:
        return self._store.open(name)

    def open_writable(self, name: str) -> WritableDevice:
        return self._store.open_writable(name)

    def create(self, name: str, size: int = 0) -> WritableDevice:
        made = self._made[name] = _HashedDevice(self._store.create(name, size))
        return made

    def exists(self, name: str) -> bool:
        return self._store.exists(name)

    def list(self, folder: str = "") -> list[str]:
        return self._store.list(folder)

    def rename(self, old: str, new: str, *, replace: bool = False) -> None:
        self._store.rename(old, new, replace=replace)

    def remove(self, name: str) -> None:
        self._store.remove(name)

    def make_folder(self, name: str) -> None:
        self._store.make_folder(name)

    def substore(self, folder: str) -> Store:
        return self._store.substore(folder)


class _HashedDevice(BaseWritableDevice):
    def __init__(self, device: WritableDevice) -> None:
        super().__init__(
            name=device.name,
            capacity=device.capacity,
            sector_size=device.sector_size,
            alignment=device.alignment,
            writable=True,
        )
        self._device = device
        self._hash = hashlib.sha256()
        self._ordered = True
        self.written = 0

    @property
    def io_batch(self) -> int:
        return self._device.io_batch

    @property
    def in_order(self) -> bool:
        """True if the bytes came in one ascending run that is now the whole object."""
        return self._ordered and self.written == self.capacity

    def hexdigest(self) -> str:
        return self._hash.hexdigest()

    def _read_into(self, offset: int, view: memoryview) -> None:
        self._device.read_into(offset, view)

    def _write_from(self, offset: int, view: memoryview) -> None:
        self._write_many([(offset, view)])

    def _write_many(self, pieces: Sequence[tuple[int, memoryview]]) -> None:
        self._device.write_many(pieces)
        for offset, view in pieces:
            if offset == self.written:
                self._hash.update(view)
                self.written += len(view)
            else:
                self._ordered = False

    def _write_zeroes(self, offset: int, length: int) -> None:
        self._device.write_zeroes(offset, length)
        self._ordered = False

    def _flush(self) -> None:
        self._device.flush()

    def _resize(self, capacity: int) -> None:
        self._device.resize(capacity)

    def _close(self) -> None:
        self._device.close()
