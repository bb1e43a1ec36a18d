"""Local files past the page cache (``O_DIRECT``), for whoever asks for unbuffered access.

Only whole blocks at aligned offsets and from aligned memory go directly. What is not aligned in memory goes
through an aligned buffer of a pool; the edges of a write that are no whole blocks go through the page cache,
which the kernel keeps coherent with direct access.

Source of facts: open(2), on O_DIRECT.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from vdkit.block.file import Descriptor, FileDevice
from vdkit.block.local import FolderStore, open_file
from vdkit.errors import CorruptDisk, StoreError, from_os_error

#: Alignment in bytes that suits every device; the page of the machine, so that anonymous maps have it.
BLOCK: Final = 4096
#: Bytes of a bounce buffer, and how many are kept when nobody uses them.
BUFFER_BYTES: Final = 1 << 20
MAX_POOLED: Final = 4


class BufferPool:
    """Aligned buffers that are used again and again."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: list[mmap.mmap] = []

    @contextmanager
    def borrowed(self) -> Iterator[memoryview]:
        with self._lock:
            buffer = self._free.pop() if self._free else None
        if buffer is None:
            buffer = mmap.mmap(-1, BUFFER_BYTES)
        with memoryview(buffer) as view:
            yield view
        with self._lock:
            if len(self._free) < MAX_POOLED:
                self._free.append(buffer)


_pool = BufferPool()


class DirectFile(FileDevice):
    """A :class:`FileDevice` whose data goes past the page cache; made by :func:`go_direct`."""

    def __init__(self, plain: FileDevice, direct: int) -> None:
        """Takes over ``plain``'s file and the descriptor ``direct`` of the same file."""
        super().__init__(
            os.dup(plain._descriptor),
            name=plain.name,
            capacity=plain.capacity,
            sector_size=plain.sector_size,
            writable=plain.writable,
            is_file=plain._is_file,
        )
        plain.close()
        self._direct = direct

    @property
    def io_batch(self) -> int:
        return BUFFER_BYTES

    def hold(self, let_go: Callable[[], None]) -> Descriptor | None:
        """None: reads past this device would go through the page cache."""
        del let_go
        return None

    def _read_vectors(self, offset: int, views: list[memoryview]) -> None:
        for view in views:
            if _is_aligned(offset, view):
                self._read_whole(offset, view)
            else:
                self._read_bounced(offset, view)
            offset += len(view)

    def _read_whole(self, offset: int, view: memoryview) -> None:
        done = 0
        while done < len(view):
            count = self._pread(offset + done, view[done:])
            if count < min(BLOCK, len(view) - done):
                self._refuse_end(offset + done + count)
            done += count if done + count == len(view) else count // BLOCK * BLOCK

    def _read_bounced(self, offset: int, view: memoryview) -> None:
        done = 0
        with _pool.borrowed() as buffer:
            while done < len(view):
                start = (offset + done) // BLOCK * BLOCK
                skip = offset + done - start
                want = min(len(buffer), -(-(skip + len(view) - done) // BLOCK) * BLOCK)
                got = self._pread(start, buffer[:want]) - skip
                if got <= 0:
                    self._refuse_end(offset + done)
                part = min(got, len(view) - done)
                view[done : done + part] = buffer[skip : skip + part]
                done += part

    def _pread(self, offset: int, view: memoryview) -> int:
        try:
            count = os.preadv(self._direct, [view], offset)
        except OSError as error:
            raise from_os_error(error, f"{self.name}: reading at offset {offset}") from error
        if count == 0:
            self._refuse_end(offset)
        return count

    def _refuse_end(self, offset: int) -> None:
        raise CorruptDisk(
            f"{self.name}: the file ends at or before offset {offset}, {self.capacity} bytes were expected",
            remedy="it was cut short after it was opened or made",
        )

    def _write_vectors(self, offset: int, views: list[memoryview]) -> None:
        for view in views:
            end = offset + len(view)
            head = min(end, -(-offset // BLOCK) * BLOCK)
            tail = max(head, end // BLOCK * BLOCK)
            if head > offset:
                super()._write_vectors(offset, [view[: head - offset]])
            if tail > head:
                self._write_blocks(head, view[head - offset : tail - offset])
            if end > tail:
                super()._write_vectors(tail, [view[tail - offset :]])
            offset = end

    def _write_blocks(self, offset: int, view: memoryview) -> None:
        if _is_aligned(offset, view):
            self._pwrite(offset, view)
            return
        with _pool.borrowed() as buffer:
            for start in range(0, len(view), len(buffer)):
                part = view[start : start + len(buffer)]
                buffer[: len(part)] = part
                self._pwrite(offset + start, buffer[: len(part)])

    def _pwrite(self, offset: int, view: memoryview) -> None:
        done = 0
        while done < len(view):
            try:
                count = os.pwritev(self._direct, [view[done:]], offset + done)
            except OSError as error:
                raise from_os_error(error, f"{self.name}: writing at offset {offset + done}") from error
            if count < BLOCK:
                raise StoreError(f"{self.name}: writing at offset {offset + done} made no progress")
            done += count // BLOCK * BLOCK

    def _close(self) -> None:
        try:
            super()._close()
        finally:
            os.close(self._direct)


def _is_aligned(offset: int, view: memoryview) -> bool:
    if offset % BLOCK or len(view) % BLOCK or view.readonly or not len(view):
        return False
    import ctypes  # loaded on first use: most runs never go direct

    return ctypes.addressof(ctypes.c_char.from_buffer(view)) % BLOCK == 0


def go_direct(plain: FileDevice) -> FileDevice:
    """The same file past the page cache, or ``plain`` itself where the file system cannot do that."""
    access = os.O_RDWR if plain.writable else os.O_RDONLY
    try:
        # By way of /proc it is the very file that is open, whatever its name leads to by now.
        path = f"/proc/self/fd/{plain._descriptor}"
        direct = os.open(path, access | os.O_DIRECT | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOENT):
            return plain
        with contextlib.suppress(StoreError):
            plain.close()
        raise from_os_error(error, f"{plain.name}: opening unbuffered") from error
    try:
        return DirectFile(plain, direct)
    except BaseException:
        os.close(direct)
        raise


class DirectStore(FolderStore):
    """A folder whose files are opened unbuffered; :attr:`notes` names those that could not be."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        self.notes: list[str] = []

    def open(self, name: str) -> FileDevice:
        return self._directly(super().open(name))

    def open_writable(self, name: str, *, shown: str | None = None) -> FileDevice:
        return self._directly(super().open_writable(name, shown=shown))

    def _directly(self, plain: FileDevice) -> FileDevice:
        made = go_direct(plain)
        if made is plain:
            note = cannot(plain)
            if note not in self.notes:
                self.notes.append(note)
        return made


def open_file_direct(path: str | os.PathLike[str], *, writable: bool = False) -> FileDevice:
    """:func:`open_file`, unbuffered where the file system can; a :class:`DirectFile` if it could."""
    return go_direct(open_file(path, writable=writable))


def cannot(plain: FileDevice) -> str:
    return f"{plain.name}: the file system refuses unbuffered access; it is buffered"
