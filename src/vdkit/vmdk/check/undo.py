"""The undo file of a repair in place: what every changed sector was, durable before any of it changes.

Layout, numbers little-endian: a head of 512 bytes (16 bytes of magic, u64 length of the index, u64 offset of
the data, u32 CRC-32 of the index, u32 CRC-32 of the data), the index, the old bytes of all runs one after the
other. The index is JSON: the disk's name, and for each file its name, whether it was there, its sizes before
and after, and its runs as offset, length and CRC-32 after the repair. The magic tells the state:

* ``vdkit undo open``: the repair may have been made in part.
* ``vdkit undo done``: the repair has been made.

The file gets its name only when it is complete and durable, and the repair begins after that.

Source of facts: this is vdkit's own format.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from vdkit.block.device import BlockDevice
from vdkit.block.store import Store
from vdkit.errors import CorruptDisk, NotADisk, NotFound, UsageError
from vdkit.vmdk.check.patch import Patch
from vdkit.vmdk.kinds import SECTOR

OPEN, DONE = b"vdkit undo open\n", b"vdkit undo done\n"
_HEAD = struct.Struct("<16sQQII")
_MAX_INDEX = 1 << 28
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class UndoFile:
    """``runs`` are ``(offset, length, crc after)`` of bytes that were there before."""

    name: str
    existed: bool
    size: int
    new_size: int
    runs: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class Undo:
    state: bytes
    disk: str
    files: tuple[UndoFile, ...]
    data: int


def write_undo(store: Store, name: str, disk: str, patches: Mapping[str, Patch]) -> None:
    """Make the undo file, durable and complete."""
    files = [_planned(key, patch) for key, patch in patches.items()]
    index = json.dumps(
        {
            "disk": disk,
            "files": [
                {
                    "name": file.name,
                    "existed": file.existed,
                    "size": file.size,
                    "new-size": file.new_size,
                    "runs": [list(run) for run in file.runs],
                }
                for file in files
            ],
        }
    ).encode()
    data = SECTOR + -(-len(index) // SECTOR) * SECTOR
    total = sum(length for file in files for _, length, _ in file.runs)
    beside = f"{name}.new"
    if store.exists(beside):  # left by a run that was killed
        store.remove(beside)
    with store.create(beside, data + total) as out:
        out.write_from(SECTOR, index)
        position, crc = data, 0
        for file in files:
            base = patches[file.name].base
            for offset, length, _ in file.runs:
                for at, piece in _pieces(base, offset, length):
                    out.write_from(position + at, piece)
                    crc = zlib.crc32(piece, crc)
                position += length
        out.write_from(0, _HEAD.pack(OPEN, len(index), data, zlib.crc32(index), crc))
        out.flush()
    store.rename(beside, name)


def _planned(name: str, patch: Patch) -> UndoFile:
    """What will change of what was there; behind the old end nothing was."""
    old = patch.base.capacity
    # By sectors: of a repair that was interrupted each is as before or as after, and nothing else.
    runs = list(patch.changes().clip(0, min(old, patch.capacity)).split(SECTOR))
    if patch.capacity < old:
        runs += [(max(patch.capacity, 0), old - patch.capacity)]
    found = []
    for offset, length in sorted(runs):
        crc = 0
        inside = max(0, min(length, patch.capacity - offset))
        for _, piece in _pieces(patch, offset, inside):
            crc = zlib.crc32(piece, crc)
        found.append((offset, length, crc))
    return UndoFile(name, not patch.created, old, patch.capacity, tuple(found))


def _pieces(device: BlockDevice, offset: int, length: int) -> Iterator[tuple[int, bytearray]]:
    for at in range(0, length, _CHUNK):
        piece = bytearray(min(_CHUNK, length - at))
        device.read_into(offset + at, piece)
        yield at, piece


def mark(store: Store, name: str, state: bytes) -> None:
    with store.open_writable(name) as file:
        file.write_from(0, state)
        file.flush()


def read_undo(store: Store, name: str) -> Undo:
    """Raises NotADisk if it is no undo file, CorruptDisk if it is damaged."""
    with store.open(name) as file:
        where = file.name
        head = bytearray(min(_HEAD.size, file.capacity))
        file.read_into(0, head)
        if len(head) < _HEAD.size or bytes(head[:16]) not in (OPEN, DONE):
            raise NotADisk(f"{where}: no undo file of a repair")
        state, length, data, index_crc, data_crc = _HEAD.unpack(head)
        if length > min(_MAX_INDEX, file.capacity) or data > file.capacity:
            raise CorruptDisk(f"{where}: the undo file is cut short")
        index = bytearray(length)
        if SECTOR + length > file.capacity:
            raise CorruptDisk(f"{where}: the undo file is cut short")
        file.read_into(SECTOR, index)
        if zlib.crc32(index) != index_crc:
            raise CorruptDisk(f"{where}: the index of the undo file is damaged")
        made = _parsed(state, bytes(index), data, where)
        crc = 0
        total = sum(run[1] for one in made.files for run in one.runs)
        if data + total > file.capacity:
            raise CorruptDisk(f"{where}: the undo file is cut short")
        for _, piece in _pieces(file, data, total):
            crc = zlib.crc32(piece, crc)
        if crc != data_crc:
            raise CorruptDisk(f"{where}: the saved sectors of the undo file are damaged")
        return made


def _parsed(state: bytes, index: bytes, data: int, where: str) -> Undo:
    try:
        document: dict[str, Any] = json.loads(index)
        files = tuple(
            UndoFile(
                str(one["name"]),
                bool(one["existed"]),
                int(one["size"]),
                int(one["new-size"]),
                tuple((int(a), int(b), int(c)) for a, b, c in one["runs"]),
            )
            for one in document["files"]
        )
        disk = str(document["disk"])
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptDisk(f"{where}: the index of the undo file cannot be read") from error
    for one in files:
        if one.size < 0 or any(a < 0 or b < 0 or a + b > one.size for a, b, _ in one.runs):
            raise CorruptDisk(f"{where}: the index of the undo file names bytes that were not there")
    return Undo(state, disk, files, data)


def undo_repair(store: Store, undo: str, *, force: bool = False) -> None:
    """Put back, byte for byte, what a repair in place has changed, sizes included; then remove the undo file.

    May be interrupted and called again. A disk that has been changed since is refused, unless ``force``:
    putting back old tables under newer data would destroy it.
    """
    found = read_undo(store, undo)
    if not force:
        if found.state == DONE:
            for file in found.files:
                _check_untouched(store, file, undo)
        else:
            _check_between(store, found, undo)
    if found.state == DONE:
        # From now on the disk is neither as before nor as repaired: an interruption is made good by going on.
        mark(store, undo, OPEN)
    _restore(store, undo, found)
    store.remove(undo)


def _check_untouched(store: Store, file: UndoFile, undo: str) -> None:
    try:
        with store.open(file.name) as device:
            same = device.capacity == file.new_size
            for offset, length, crc in file.runs:
                inside = max(0, min(length, file.new_size - offset))
                seen = 0
                for _, piece in _pieces(device, offset, inside) if same else ():
                    seen = zlib.crc32(piece, seen)
                same = same and seen == crc
    except NotFound:
        same = False
    if not same:
        raise _changed_since(store, file, undo)


def _changed_since(store: Store, file: UndoFile, undo: str) -> UsageError:
    return UsageError(
        f"{store.name}/{file.name}: changed since it was repaired",
        remedy=f"undoing the repair with {undo} would destroy what was written since (force does it); "
        f"to keep the disk as it is, remove {undo}",
    )


def _check_between(store: Store, found: Undo, undo: str) -> None:
    """After a repair, or its undoing, that was interrupted: each run is as before or as after."""
    position = found.data
    with store.open(undo) as source:
        for file in found.files:
            if not file.existed:
                continue
            low, high = sorted((file.size, file.new_size))
            with store.open(file.name) as device:
                if not low <= device.capacity <= high:
                    raise _changed_since(store, file, undo)
                for offset, length, crc in file.runs:
                    if offset < file.new_size and not _is_either(
                        device, offset, min(length, low - offset), source, position, crc
                    ):
                        raise _changed_since(store, file, undo)
                    position += length


def _is_either(
    device: BlockDevice, offset: int, length: int, source: BlockDevice, position: int, crc: int
) -> bool:
    now, before = bytearray(length), bytearray(length)
    device.read_into(offset, now)
    if zlib.crc32(now) == crc:
        return True
    source.read_into(position, before)
    return now == before


def _restore(store: Store, undo: str, found: Undo) -> None:
    position = found.data
    with store.open(undo) as source:
        for file in found.files:
            if not file.existed:
                _remove(store, file.name)
                continue
            with store.open_writable(file.name) as device:
                if device.capacity < file.size:
                    device.resize(file.size)
                for offset, length, _ in file.runs:
                    for at, piece in _pieces(source, position, length):
                        device.write_from(offset + at, piece)
                    position += length
                if device.capacity != file.size:
                    device.resize(file.size)
                device.flush()


def _remove(store: Store, name: str) -> None:
    if store.exists(name):
        store.remove(name)
