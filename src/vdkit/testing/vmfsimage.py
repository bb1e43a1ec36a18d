"""Formats VMFS-5 and VMFS-6 volumes as fixtures for tests of readers, and for nothing else.

::

    image = VmfsImage.in_memory(VmfsOptions(version=6, members=(2, 2)))
    image.folder("vm")
    image.disk("vm/vm-flat.vmdk", 5 * MIB + 512, "dzhcd")
    manifest = image.finish()

What it writes has everything that the public readers go by, and a manifest says what they must find. It is no
file system that an ESXi host would mount: journals, locks and half the counters are not there. For large
blocks, to-be-zeroed bits and copy on write no public image exists; there a fixture shows how we read the
public descriptions, not what a host writes.

Source of facts: our notes on VMFS, sections 2 and 6.2.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from vdkit.block.device import WritableDevice
from vdkit.block.local import FolderStore
from vdkit.block.memory import MemoryDevice
from vdkit.errors import UsageError
from vdkit.testing.vmfsdirectory import Entry, encode_5, encode_6
from vdkit.testing.vmfslayout import (
    ALIGNMENT,
    MIB,
    TIME,
    Space,
    VmfsOptions,
    block_address,
    descriptor_address,
    disk_id,
    geometries,
    large_address,
    lock,
    pointer_address,
    sub_block_address,
    superblock,
)
from vdkit.testing.vmfsmanifest import STALE, Block, Expected, Manifest, random_block
from vdkit.testing.vmfspools import POOL_BYTES, RATIO, Blocks, Order, Pool, bitmap_length, write_bitmap

_DIRECTORY, _FILE, _SYMLINK, _SYSTEM, _RDM = 2, 3, 4, 5, 6
_DIRECT, _SUB_BLOCKS, _ONE_LEVEL, _ONE_LEVEL_2, _TWO_LEVELS, _RESIDENT = 1, 2, 3, 5, 0x10D0, 0x10D1
_SYSTEM_FILES: Final = ("", "fbb", "fdc", "pbc", "sbc", "vh", "pb2", "sdd", "jbc")
#: Directories up to so many sub-blocks are kept in them.
_DIRECTORY_SUB_BLOCKS: Final = 4
_STATES: Final = frozenset("dDzhcp")


@dataclass(slots=True)
class _Node:
    """A descriptor that has been given out."""

    path: str
    type: int
    address: int
    generation: int
    at: int
    """Offset in the volume."""


@dataclass(slots=True)
class _Body:
    """What a descriptor says of its data."""

    length: int
    layout: int
    block_size: int
    pointers: Mapping[int, int]
    """By slot."""
    blocks: int = 0
    zeroed: int = 0
    shared: int = 0
    pointer_blocks: int = 0
    large: int = 0
    resident: bytes = b""


class VmfsImage:
    """A volume being made; what is added gets its space at once, directories are written by ``finish``."""

    def __init__(self, devices: Sequence[WritableDevice], options: VmfsOptions) -> None:
        """The devices are empty, and of the sizes that the options tell; they stay the caller's."""
        self.options = options
        self.space = Space(devices, options)
        self.devices = self.space.devices
        self._geometry = geometries(options)
        self._blocks = Blocks(options)
        self._nodes: dict[str, _Node] = {}
        self._folders: dict[str, list[str]] = {"": []}
        self._expected: dict[str, Expected] = {}
        self._system: dict[str, _Node] = {}
        self._header_blocks: list[int] = []
        self._pools = self._make_pools()
        self._bitmap = self._take_bytes(bitmap_length(options, self._blocks.count))
        for name in _SYSTEM_FILES[: 9 if options.six else 8]:
            self._system[name] = self._node(f".{name}.sf" if name else "", _SYSTEM if name else _DIRECTORY)
        self._nodes[""] = self._system[""]

    @classmethod
    def in_memory(cls, options: VmfsOptions) -> Self:
        return cls(
            [
                MemoryDevice(options.device_size(i), name=f"lun{i}", sector_size=512)
                for i in range(len(options.members))
            ],
            options,
        )

    @classmethod
    def in_files(cls, folder: Path, options: VmfsOptions) -> tuple[Self, list[Path]]:
        """New sparse files ``lun0.img``, ... in ``folder``; close ``devices`` before others read them."""
        paths = [folder / f"lun{i}.img" for i in range(len(options.members))]
        store = FolderStore(str(folder))
        devices = [store.create(path.name, options.device_size(i)) for i, path in enumerate(paths)]
        return cls(devices, options), paths

    # -- what is added ---------------------------------------------------------------------------

    def folder(self, path: str) -> None:
        self._add(path, _DIRECTORY)
        self._folders[path] = []

    def small(self, path: str, data: bytes, *, layout: int | None = None) -> None:
        """A file of a few bytes: in its descriptor, in one sub-block, or in sub-blocks if ``layout`` is 2."""
        if layout is None:
            layout = _RESIDENT if len(data) <= self._resident_size else _SUB_BLOCKS
        self._small(self._add(path, _FILE), data, layout)

    def symlink(self, path: str, target: str) -> None:
        self._small(
            self._add(path, _SYMLINK), target.encode(), _RESIDENT if self.options.six else _SUB_BLOCKS
        )

    def rdm(self, path: str, size: int) -> None:
        """A raw device mapping to a LUN of ``size`` bytes."""
        node = self._add(path, _RDM)
        self._write_descriptor(node, _Body(size, 0, 512, {}, resident=disk_id(77)))
        self._expected[path] = Expected(path, _RDM, size, (), node.at)

    def data(self, path: str, data: bytes, *, order: Order = "straight") -> None:
        """A file with this content, in blocks."""
        size = self.options.block_size
        count = -(-len(data) // size)
        self.disk(
            path, len(data), "d" * count, order=order, content=lambda i: data[i * size : (i + 1) * size]
        )

    def disk(
        self,
        path: str,
        length: int,
        states: str | Mapping[int, str],
        *,
        order: Order = "straight",
        large: Collection[int] = (),
        large_once: bool = False,
        levels: int | None = None,
        mask: int | None = None,
        content: Callable[[int], bytes] | None = None,
    ) -> None:
        """A file in blocks. ``states``: a letter a block, or by the block's number; all others are holes.

        ``d`` data, ``D`` allocated and never written, ``z`` to be zeroed with somebody's old data below,
        ``c`` data, copy on write, ``p`` partly to be zeroed, ``h`` hole. ``large``: which units of 512 blocks
        are one large block each; in them what is not told is ``D``. ``large_once``: only the first slot
        names it.
        ``mask`` are the bits of ``z`` (VMFS-6).
        """
        size = self.options.block_size
        count = -(-length // size)
        wanted = dict(enumerate(states)) if isinstance(states, str) else dict(states)
        if any(letter not in _STATES or not 0 <= i < count for i, letter in wanted.items()):
            raise UsageError(f"{path}: states {states!r} for {count} blocks")
        node = self._add(path, _FILE)
        slots, found = self._allocate(path, wanted, count, order, large, mask, content)
        if large_once:
            slots = {i: value for i, value in slots.items() if i // RATIO not in large or i % RATIO == 0}
        body = self._body(length, slots, levels)
        body.zeroed = sum(block.letter in "zp" for block in found)
        body.shared = sum(block.letter == "c" for block in found)
        body.blocks = len(found)
        body.large = len(large)
        self._write_descriptor(node, body)
        self._expected[path] = Expected(path, _FILE, length, tuple(found), node.at, block_size=size)

    # -- the end ---------------------------------------------------------------------------------

    def finish(self) -> Manifest:
        """Writes directories, bitmaps and headers; nothing can be added any more."""
        for path in sorted(self._folders, key=lambda p: p.count("/"), reverse=True):
            self._write_directory(path)
        self._write_system()
        for pool in self._pools.values():
            pool.write_tables()
        write_bitmap(self.options, self.space, self._bitmap, self._blocks)
        self._write_heartbeats()
        self.space.write(0x200000, superblock(self.options, self._system[""].at))
        self.space.format_members()
        for device in self.devices:
            device.flush()
        return Manifest(self.options, dict(sorted(self._expected.items())), self.space.place)

    # -- space -----------------------------------------------------------------------------------

    def _take_bytes(self, length: int) -> list[int]:
        return self._blocks.take(-(-length // self.options.block_size))

    def _make_pools(self) -> dict[str, Pool]:
        """The area of the headers, and behind it the pools; descriptors have their fixed place."""
        start = (
            7 * MIB if self.options.six else -(-4 * MIB // self.options.block_size) * self.options.block_size
        )
        self._header_blocks = self._take_bytes(start)
        return {
            name: Pool(name, self._geometry[name], self._take_bytes(length), self.options, self.space)
            for name, length in POOL_BYTES[self.options.version].items()
        }

    def _node(self, path: str, kind: int) -> _Node:
        cluster, resource, at = self._pools["fdc"].take()
        address = descriptor_address(cluster, resource)
        return _Node(path, kind, address, 100 + self._pools["fdc"].used, at)

    def _add(self, path: str, kind: int) -> _Node:
        parent, _, name = path.rpartition("/")
        if parent not in self._folders or not name or path in self._nodes:
            raise UsageError(f"{path}: its folder does not exist, or it does")
        node = self._nodes[path] = self._node(path, kind)
        self._folders[parent].append(path)
        return node

    def _sub_block(self) -> tuple[int, int]:
        """Address and volume offset."""
        cluster, resource, at = self._pools["sbc"].take()
        return sub_block_address(self.options.version, cluster, resource, dense=self.options.dense), at

    def _pointer_block(self, pool: str) -> tuple[int, int]:
        if pool == "sbc":
            return self._sub_block()
        cluster, resource, at = self._pools[pool].take()
        kind = 3 if pool == "pbc" else 5
        return pointer_address(self.options.version, kind, cluster, resource), at

    @property
    def _resident_size(self) -> int:
        return ALIGNMENT - 512 if self.options.six else 1024

    @property
    def _tops(self) -> int:
        return 320 if self.options.six else 256

    @property
    def _fan(self) -> int:
        return 8192 if self.options.six else 1024

    # -- files -----------------------------------------------------------------------------------

    def _small(self, node: _Node, data: bytes, layout: int) -> None:
        size = self._geometry["sbc"].size
        if layout == _RESIDENT:
            if len(data) > self._resident_size:
                raise UsageError(f"{node.path}: {len(data)} bytes do not fit a descriptor")
            body = _Body(len(data), _RESIDENT, self.options.block_size, {}, resident=data)
        else:
            body = _Body(len(data), _SUB_BLOCKS, size, self._in_sub_blocks(data))
            body.blocks = len(body.pointers)
        self._write_descriptor(node, body)
        self._expected[node.path] = Expected(node.path, node.type, len(data), (), node.at, inline=data)

    def _in_sub_blocks(self, data: bytes) -> dict[int, int]:
        size, found = self._geometry["sbc"].size, {}
        for index, start in enumerate(range(0, len(data), size)):
            found[index], at = self._sub_block()
            self.space.write(at, data[start : start + size].ljust(size, STALE))
        return found

    def _allocate(
        self,
        path: str,
        wanted: dict[int, str],
        count: int,
        order: Order,
        large: Collection[int],
        mask: int | None,
        content: Callable[[int], bytes] | None,
    ) -> tuple[dict[int, int], list[Block]]:
        size = self.options.block_size
        starts = {unit: self._blocks.take_large() for unit in sorted(large)}
        for unit in starts:
            for index in range(unit * RATIO, min(count, (unit + 1) * RATIO)):
                wanted.setdefault(index, "D")
        small = [i for i in sorted(wanted) if wanted[i] != "h" and i // RATIO not in starts]
        numbers = dict(zip(small, self._blocks.take(len(small), order), strict=True))
        slots, found = {}, []
        for index in sorted(wanted):
            letter, whole = wanted[index], starts.get(index // RATIO)
            if letter == "h":
                continue
            bits = {"z": 0xFF if mask is None else mask, "p": 0x06}.get(letter, 0)
            if whole is None:
                number = numbers[index]
                slots[index] = block_address(self.options.version, number, mask=bits, shared=letter == "c")
            else:
                number = whole * RATIO + index % RATIO
                slots[index] = large_address(whole, mask=bits, shared=letter == "c")
            made = None if letter in "zD" else content or random_block
            block = Block(index, letter, number * size, made, self.options.seed, path)
            if letter != "D":
                self.space.write(block.volume_offset, block.bytes(size) if made else STALE * size)
            found.append(block)
        return slots, found

    def _body(self, length: int, slots: Mapping[int, int], levels: int | None) -> _Body:
        """The pointers of a file, with blocks of them below as the length wants, or ``levels``."""
        count = -(-length // self.options.block_size)
        fan = self._fan
        if levels is None:
            levels = 0 if count <= self._tops else 1 if count <= self._tops * fan else 2
        if count > self._tops * fan**levels:
            raise UsageError(f"{length} bytes do not fit {levels} levels")
        made = 0
        for _ in range(levels):
            slots, number = self._pointer_level(slots, "sbc" if self.options.six else "pbc")
            made += number
        layout = (_DIRECT, _ONE_LEVEL, _TWO_LEVELS)[levels]
        return _Body(length, layout, self.options.block_size, slots, pointer_blocks=made)

    def _pointer_level(self, slots: Mapping[int, int], pool: str) -> tuple[dict[int, int], int]:
        """The addresses of new blocks of pointers that hold ``slots``, by their own slot; how many."""
        tables: dict[int, dict[int, int]] = {}
        for slot, value in slots.items():
            tables.setdefault(slot // self._fan, {})[slot % self._fan] = value
        found = {}
        for index, table in sorted(tables.items()):
            found[index], at = self._pointer_block(pool)
            values = [table.get(i, 0) for i in range(self._fan)]
            self.space.write(at, struct.pack(f"<{self._fan}{self._letter}", *values))
        return found, len(found)

    @property
    def _letter(self) -> str:
        return "Q" if self.options.six else "I"

    def _write_descriptor(self, node: _Node, body: _Body) -> None:
        six = self.options.six
        base = ALIGNMENT if six else 512
        raw = lock(0x10C00001, node.at) + bytearray((2 * ALIGNMENT if six else 2048) - 512)
        struct.pack_into("<5I", raw, base, node.address, node.generation, 1, node.type, 9 if six else 0)
        struct.pack_into("<QQQ", raw, base + 0x14, body.length, body.block_size, body.blocks)
        mode = 0o755 if node.type == _DIRECTORY else 0o600
        struct.pack_into("<7I", raw, base + 0x2C, TIME, TIME, TIME, 0, 0, mode, body.layout)
        struct.pack_into("<II", raw, base + 0x48, body.zeroed, body.shared)
        struct.pack_into("<I", raw, base + 0x5C, body.pointer_blocks)
        raw[base + 0x89] = body.block_size.bit_length() - 1
        if six:
            struct.pack_into("<I", raw, base + 0x64, 0x66646D64)
            struct.pack_into("<I", raw, base + 0x6C, 20)
            struct.pack_into("<I", raw, base + 0x8C, body.large)
        if body.resident:
            start = ALIGNMENT + 512 if six else 1024
            raw[start : start + len(body.resident)] = body.resident
        else:
            start = len(raw) - 2560 if six else 1024
            for slot, value in body.pointers.items():
                struct.pack_into(f"<{self._letter}", raw, start + slot * (8 if six else 4), value)
        self.space.write(node.at, raw)

    # -- folders and the volume's own files ------------------------------------------------------

    def _write_directory(self, path: str) -> None:
        node = self._nodes[path]
        parent = self._nodes[path.rpartition("/")[0]]
        entries = [self._entry(".", node), self._entry("..", parent)]
        if not path:
            entries += [self._entry(f".{name}.sf", made) for name, made in self._system.items() if name]
        entries += [self._entry(p.rpartition("/")[2], self._nodes[p]) for p in self._folders[path]]
        self._put_directory(node, entries, root=not path)
        if path:
            self._expected[path] = Expected(path, _DIRECTORY, 0, (), node.at)

    def _put_directory(self, node: _Node, entries: Sequence[Entry], *, root: bool) -> None:
        data = encode_6(entries, root=root) if self.options.six else encode_5(entries)
        sub_block = self._geometry["sbc"].size
        if not root and len(data) <= _DIRECTORY_SUB_BLOCKS * sub_block:
            body = _Body(len(data), _SUB_BLOCKS, sub_block, self._in_sub_blocks(data))
        else:
            numbers = self._take_bytes(len(data))
            size = self.options.block_size
            for index, number in enumerate(numbers):
                self.space.write(number * size, data[index * size : (index + 1) * size])
            body = self._body(len(data), self._addresses(numbers), None)
        body.blocks = len(body.pointers)
        self._write_descriptor(node, body)

    def _entry(self, name: str, node: _Node) -> Entry:
        return Entry(name, node.type, node.address, node.generation)

    def _addresses(self, numbers: Sequence[int]) -> dict[int, int]:
        return {i: block_address(self.options.version, number) for i, number in enumerate(numbers)}

    def _write_system(self) -> None:
        version = self.options.version
        for name, node in self._system.items():
            if name == "sdd":
                self._put_directory(node, [self._entry(".", node), self._entry("..", node)], root=True)
            elif name:
                pool = self._pools.get(name)
                own = {"fbb": self._bitmap, "vh": self._header_blocks}.get(name, pool.blocks if pool else ())
                length = len(own) * self.options.block_size
                body = _Body(length, _DIRECT, self.options.block_size, self._addresses(own), len(own))
                if self.options.indirect and name in (("sbc",) if version == 6 else ("fdc", "sbc")):
                    second = version == 6
                    body.pointers, body.pointer_blocks = self._pointer_level(
                        body.pointers, "pb2" if second else "pbc"
                    )
                    body.layout = _ONE_LEVEL_2 if second else _ONE_LEVEL
                self._write_descriptor(node, body)

    def _write_heartbeats(self) -> None:
        """A few free slots; nobody has the volume mounted."""
        size = ALIGNMENT if self.options.six else 512
        for slot in range(16):
            at = 0x300000 + slot * size
            self.space.write(at, struct.pack("<IQ", 0xABCDEF01, at))
