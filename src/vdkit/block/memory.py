"""Devices and stores in memory: sparse, with real extents. For overlays, simulators, tests, scratch space."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from vdkit.block.device import BaseWritableDevice
from vdkit.block.extent import Extent, ExtentKind
from vdkit.block.store import Store
from vdkit.errors import AlreadyExists, NotFound, OutsideStore, StoreError

#: Granularity of allocation, in bytes.
PAGE = 1 << 16
_ZEROES = bytes(PAGE)


class _Content:
    """The bytes of one object, shared by every device that is open on it."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.pages: dict[int, bytearray] = {}
        self.lock = threading.Lock()

    def read(self, offset: int, view: memoryview) -> None:
        done = 0
        while done < len(view):
            index, start = divmod(offset + done, PAGE)
            step = min(len(view) - done, PAGE - start)
            page = self.pages.get(index)
            source = _ZEROES[:step] if page is None else memoryview(page)[start : start + step]
            view[done : done + step] = source
            done += step

    def write(self, offset: int, view: memoryview) -> None:
        done = 0
        while done < len(view):
            index, start = divmod(offset + done, PAGE)
            step = min(len(view) - done, PAGE - start)
            page = self.pages.get(index)
            if page is None:
                page = self.pages[index] = bytearray(PAGE)
            page[start : start + step] = view[done : done + step]
            done += step

    def zero(self, offset: int, length: int) -> None:
        end = offset + length
        first_whole, last_whole = -(-offset // PAGE), end // PAGE
        if first_whole > last_whole:  # inside one page
            self._zero_part(offset, end)
            return
        self._zero_part(offset, first_whole * PAGE)
        self._zero_part(last_whole * PAGE, end)
        if last_whole - first_whole < len(self.pages):
            for index in range(first_whole, last_whole):
                self.pages.pop(index, None)
        else:
            for index in [i for i in self.pages if first_whole <= i < last_whole]:
                del self.pages[index]

    def _zero_part(self, start: int, end: int) -> None:
        page = self.pages.get(start // PAGE)
        if page is not None and start < end:
            low = start % PAGE
            page[low : low + end - start] = _ZEROES[: end - start]

    def resize(self, size: int) -> None:
        if size < self.size:
            # What is cut off must not come back when the object grows again.
            self.zero(size, self.size - size)
            for index in [i for i in self.pages if i * PAGE >= size]:
                del self.pages[index]
        self.size = size

    def allocated(self, offset: int, end: int) -> list[int]:
        """Numbers of the pages in ``[offset, end)`` that exist, ascending."""
        first, last = offset // PAGE, -(-end // PAGE)
        if last - first < len(self.pages):
            return [i for i in range(first, last) if i in self.pages]
        return sorted(i for i in self.pages if first <= i < last)


class MemoryDevice(BaseWritableDevice):
    """``capacity`` bytes of memory, all zero; only what is written takes space, in pages of 64 KiB."""

    def __init__(
        self, capacity: int, *, name: str = "memory", writable: bool = True, sector_size: int = 512
    ) -> None:
        super().__init__(name=name, capacity=capacity, sector_size=sector_size, writable=writable)
        self._content = _Content(capacity)

    @classmethod
    def from_bytes(cls, data: bytes, *, name: str = "memory", writable: bool = True) -> MemoryDevice:
        """A device that holds ``data``, without its all-zero pages."""
        made = cls(len(data), name=name, writable=writable)
        for start in range(0, len(data), PAGE):
            piece = data[start : start + PAGE]
            if piece.count(0) != len(piece):
                made._content.write(start, memoryview(piece))
        return made

    @classmethod
    def _on(cls, content: _Content, *, name: str, writable: bool) -> MemoryDevice:
        made = cls(content.size, name=name, writable=writable, sector_size=1)
        made._content = content
        return made

    def _held(self, offset: int, length: int) -> None:
        if offset + length > self._content.size:
            raise StoreError(
                f"{self.name}: {length} bytes at offset {offset} are past its end at {self._content.size}"
            )

    def _read_into(self, offset: int, view: memoryview) -> None:
        with self._content.lock:
            self._held(offset, len(view))
            self._content.read(offset, view)

    def _write_from(self, offset: int, view: memoryview) -> None:
        with self._content.lock:
            self._content.size = max(self._content.size, offset + len(view))
            self._content.write(offset, view)

    def _write_zeroes(self, offset: int, length: int) -> None:
        with self._content.lock:
            self._content.size = max(self._content.size, offset + length)
            self._content.zero(offset, length)

    def _extents(self, offset: int, length: int) -> Iterator[Extent]:
        end = offset + length
        with self._content.lock:
            self._held(offset, length)
            pages = self._content.allocated(offset, end)
        position = offset
        for index in pages:
            start, stop = max(index * PAGE, offset), min((index + 1) * PAGE, end)
            yield Extent(position, start - position, ExtentKind.ZERO)
            yield Extent(start, stop - start, ExtentKind.DATA)
            position = stop
        yield Extent(position, end - position, ExtentKind.ZERO)

    def _flush(self) -> None:
        """Memory is as durable as it will ever be."""

    def _resize(self, capacity: int) -> None:
        with self._content.lock:
            self._content.resize(capacity)


def split_name(store: str, name: str) -> tuple[str, ...]:
    """The parts of an object's name; refuses every name that could lead out of the store."""
    parts = tuple(name.split("/"))
    if "\0" in name or any(part in ("", ".", "..") for part in parts):
        raise OutsideStore(
            f"{store}: the name {name!r} is not a plain relative path", remedy="give a name inside the folder"
        )
    return parts


class _Tree:
    """What a store and its substores share."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, ...], _Content] = {}
        self.folders: set[tuple[str, ...]] = {()}
        self.lock = threading.Lock()


class MemoryStore:
    """A :class:`~vdkit.block.store.Store` in memory. Opened objects live on after ``remove``, like files."""

    def __init__(self, name: str = "memory") -> None:
        self._name = name
        self._prefix: tuple[str, ...] = ()
        self._tree = _Tree()

    @property
    def name(self) -> str:
        return self._name

    def __repr__(self) -> str:
        return f"<MemoryStore {self._name!r}>"

    def open(self, name: str) -> MemoryDevice:
        return self._open(name, writable=False)

    def open_writable(self, name: str) -> MemoryDevice:
        return self._open(name, writable=True)

    def _open(self, name: str, *, writable: bool) -> MemoryDevice:
        key = self._key(name)
        with self._tree.lock:
            if key in self._tree.folders:
                raise OutsideStore(f"{self._name}/{name}: a folder, not a file")
            content = self._tree.objects.get(key)
        if content is None:
            raise NotFound(f"{self._name}/{name}: no such file")
        return MemoryDevice._on(content, name=f"{self._name}/{name}", writable=writable)

    def create(self, name: str, size: int = 0) -> MemoryDevice:
        key = self._key(name)
        made = MemoryDevice._on(_Content(size), name=f"{self._name}/{name}", writable=True)
        with self._tree.lock:
            self._need_parent(key, name)
            self._need_absent(key, name)
            self._tree.objects[key] = made._content
        return made

    def exists(self, name: str) -> bool:
        key = self._key(name)
        with self._tree.lock:
            return key in self._tree.objects or key in self._tree.folders

    def list(self, folder: str = "") -> list[str]:
        key = self._key(folder) if folder else self._prefix
        with self._tree.lock:
            if key not in self._tree.folders:
                raise NotFound(f"{self._name}/{folder}: no such folder")
            files = [k[-1] for k in self._tree.objects if k[:-1] == key]
            folders = [f"{k[-1]}/" for k in self._tree.folders if k and k[:-1] == key]
        return sorted(files + folders)

    def rename(self, old: str, new: str, *, replace: bool = False) -> None:
        old_key, new_key = self._key(old), self._key(new)
        with self._tree.lock:
            self._need_parent(new_key, new)
            if old_key in self._tree.objects:
                if new_key in self._tree.folders or not replace:
                    self._need_absent(new_key, new)
                self._tree.objects[new_key] = self._tree.objects.pop(old_key)
            elif old_key in self._tree.folders:
                self._need_absent(new_key, new)
                self._move_folder(old_key, new_key)
            else:
                raise NotFound(f"{self._name}/{old}: no such file")

    def _move_folder(self, old: tuple[str, ...], new: tuple[str, ...]) -> None:
        if new[: len(old)] == old:
            raise StoreError(f"{self._name}: a folder cannot be moved into itself")
        depth = len(old)
        self._tree.objects = {
            new + k[depth:] if k[:depth] == old else k: v for k, v in self._tree.objects.items()
        }
        self._tree.folders = {new + k[depth:] if k[:depth] == old else k for k in self._tree.folders}

    def remove(self, name: str) -> None:
        key = self._key(name)
        with self._tree.lock:
            if self._tree.objects.pop(key, None) is not None:
                return
            if key not in self._tree.folders:
                raise NotFound(f"{self._name}/{name}: no such file")
            if any(k[: len(key)] == key and k != key for k in [*self._tree.objects, *self._tree.folders]):
                raise StoreError(f"{self._name}/{name}: the folder is not empty")
            self._tree.folders.discard(key)

    def make_folder(self, name: str) -> None:
        key = self._key(name)
        with self._tree.lock:
            for depth in range(1, len(key) + 1):
                if key[:depth] in self._tree.objects:
                    raise AlreadyExists(f"{self._name}/{'/'.join(key[:depth])}: a file, not a folder")
                self._tree.folders.add(key[:depth])

    def substore(self, folder: str) -> Store:
        key = self._key(folder)
        with self._tree.lock:
            if key not in self._tree.folders:
                raise NotFound(f"{self._name}/{folder}: no such folder")
        made = MemoryStore(f"{self._name}/{folder}")
        made._prefix, made._tree = key, self._tree
        return made

    def _key(self, name: str) -> tuple[str, ...]:
        return self._prefix + split_name(self._name, name)

    def _need_parent(self, key: tuple[str, ...], name: str) -> None:
        if key[:-1] not in self._tree.folders:
            raise NotFound(f"{self._name}/{name}: its folder does not exist")

    def _need_absent(self, key: tuple[str, ...], name: str) -> None:
        if key in self._tree.objects or key in self._tree.folders:
            raise AlreadyExists(
                f"{self._name}/{name}: exists already", remedy="choose another name or remove it first"
            )
