"""Where a VMDK of a point is written: under a partial name, and hashed on its way.

The hash is of the bytes as they were meant, before any disk or network could change them: that is what makes
a later verification worth something.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from vdkit.backup.hashing import object_sha256
from vdkit.backup.names import PARTIAL
from vdkit.block.device import BaseWritableDevice, BlockDevice, WritableDevice
from vdkit.block.store import Store
from vdkit.vmdk.header import MAGIC, UNFINISHED_MAGIC

_ZEROES = bytes(1 << 20)
#: What the writer of a stream writes again when all else is done: its header.
_HEADER = 512


class PartialStore:
    """``store``, but every object's name is followed by ``.partial`` there.

    So the name that a format writes into its own text is the one the file will have.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._made: dict[str, _HashedDevice] = {}

    @property
    def name(self) -> str:
        return self._store.name

    def sha256(self, name: str) -> tuple[int, str]:
        """Size and hash of an object that was created here."""
        made = self._made[name]
        if made.in_order:
            return made.capacity, made.hexdigest()
        return object_sha256(self, name)

    def open(self, name: str) -> BlockDevice:
        return self._store.open(name + PARTIAL)

    def open_writable(self, name: str) -> WritableDevice:
        return self._store.open_writable(name + PARTIAL)

    def create(self, name: str, size: int = 0) -> WritableDevice:
        made = self._made[name] = _HashedDevice(self._store.create(name + PARTIAL, size))
        return made

    def exists(self, name: str) -> bool:
        return self._store.exists(name + PARTIAL)

    def list(self, folder: str = "") -> list[str]:
        return [n.removesuffix(PARTIAL) for n in self._store.list(folder) if n.endswith(PARTIAL)]

    def rename(self, old: str, new: str, *, replace: bool = False) -> None:
        self._store.rename(old + PARTIAL, new + PARTIAL, replace=replace)

    def remove(self, name: str) -> None:
        self._store.remove(name + PARTIAL)

    def make_folder(self, name: str) -> None:
        self._store.make_folder(name)

    def substore(self, folder: str) -> Store:
        return PartialStore(self._store.substore(folder))


class _HashedDevice(BaseWritableDevice):
    """Hashes what is written, if it is written in ascending order.

    One thing may come late: the header of an unfinished stream, which differs from the finished one by its
    first letters only. It is hashed as it will be, and believed when it has been written like that.
    """

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
        self._position = 0
        self._ordered = True
        self._expected = b""

    @property
    def io_batch(self) -> int:
        return self._device.io_batch

    @property
    def in_order(self) -> bool:
        """True if the hash is that of the whole object."""
        return self._ordered and not self._expected and self._position == self.capacity

    def hexdigest(self) -> str:
        return self._hash.hexdigest()

    def _read_into(self, offset: int, view: memoryview) -> None:
        self._device.read_into(offset, view)

    def _write_from(self, offset: int, view: memoryview) -> None:
        self._write_many([(offset, view)])

    def _write_many(self, pieces: Sequence[tuple[int, memoryview]]) -> None:
        self._device.write_many(pieces)
        for offset, view in pieces:
            self._take(offset, view)

    def _take(self, offset: int, view: memoryview) -> None:
        if offset < self._position:
            if offset == 0 and self._expected and view == self._expected:
                self._expected = b""
            else:
                self._ordered = False
            return
        if offset == 0 and bytes(view[:4]) == UNFINISHED_MAGIC:
            self._expected = MAGIC + bytes(view[4:_HEADER])
            self._hash.update(self._expected)
            view = view[_HEADER:]
            self._position = offset = len(self._expected)
        while self._position < offset:
            step = min(offset - self._position, len(_ZEROES))
            self._hash.update(memoryview(_ZEROES)[:step])
            self._position += step
        self._hash.update(view)
        self._position += len(view)

    def _write_zeroes(self, offset: int, length: int) -> None:
        self._device.write_zeroes(offset, length)
        self._ordered = False

    def _flush(self) -> None:
        self._device.flush()

    def _resize(self, capacity: int) -> None:
        self._device.resize(capacity)

    def _close(self) -> None:
        self._device.close()
