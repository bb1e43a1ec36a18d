"""A VMFS file system: paths to descriptors, descriptors to devices. It is only ever read.

Source of facts: our notes on VMFS, section 2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import Final, Self

from vdkit.errors import CorruptDisk, NotFound, NotSupported, OutsideStore
from vdkit.vmfs.addresses import Address, Kind, decode_5, decode_6
from vdkit.vmfs.blockmap import BlockMap, Places
from vdkit.vmfs.descriptor import Descriptor, FileType, Layout, parse_descriptor
from vdkit.vmfs.directory import Entry, entries_5, entries_6
from vdkit.vmfs.file import VmfsFile
from vdkit.vmfs.lvm import LogicalVolume
from vdkit.vmfs.resources import HEADER_SIZE, Geometry, parse_geometry
from vdkit.vmfs.superblock import Superblock, read_superblock

#: Symbolic links on the way to one file.
MAX_LINKS: Final = 16
#: Bytes of a symbolic link's text.
MAX_TARGET: Final = 4096
_ROOT: Final = 0x00000004
_STEP: Final = 1 << 22
#: Names and numbers of the system files, in the order in which one may need those before it.
_POOLS: Final = (
    (Kind.POINTERS_2, "pb2", 6),
    (Kind.POINTERS, "pbc", 3),
    (Kind.SUB_BLOCK, "sbc", 4),
    (Kind.DESCRIPTOR, "fdc", 2),
)
_BITMAP: Final = 1


class _Pool:
    """A resource file: the place in the volume of each of its resources."""

    def __init__(self, geometry: Geometry, blocks: BlockMap, cluster_header: int, name: str) -> None:
        self._geometry = geometry
        self._blocks = blocks
        self._cluster_header = cluster_header
        self.name = name
        self.size = geometry.size

    def locate(self, address: Address, where: str) -> int:
        what = f"{where}: .{self.name}.sf"
        at = self._geometry.offset(address.cluster, address.resource, self._cluster_header, what)
        runs = list(self._blocks.runs(at, self.size))
        if len(runs) != 1 or runs[0].length != self.size or runs[0].volume_offset is None:
            raise CorruptDisk(f"{what}: cluster {address.cluster}, resource {address.resource} is nowhere")
        return runs[0].volume_offset


class Volume:
    """The file system on ``device``, which it owns."""

    def __init__(self, device: LogicalVolume) -> None:
        """Raises NotADisk, UnsupportedVersion, CorruptDisk."""
        self.device = device
        self.super_block = read_superblock(device)
        self.name = f"[{self.super_block.label or self.super_block.uuid}]"
        self._pools: dict[Kind, _Pool] = {}
        # Until the table of small blocks has been read.
        self._small_blocks = min(0x2000, 0x20000000 // self.super_block.block_size)
        self._bootstrap()

    @property
    def uuid(self) -> str:
        """The datastore's, as in ``/vmfs/volumes/UUID``."""
        return self.super_block.uuid

    @property
    def label(self) -> str:
        return self.super_block.label

    def close(self) -> None:
        self.device.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- paths -----------------------------------------------------------------------------------

    def resolve(self, path: str, *, follow: bool = False) -> Descriptor:
        """The descriptor of a path such as ``vm/vm.vmdk``; ``""`` is the root.

        ``follow`` goes through symbolic links as long as they stay in this volume. Raises NotFound,
        OutsideStore, CorruptDisk.
        """
        return self._walk(_parts(path), path, MAX_LINKS if follow else None)

    def entries(self, descriptor: Descriptor, path: str) -> list[Entry]:
        """Entries of a directory but ``.`` and ``..``, by name. ``path`` is for messages."""
        if descriptor.type is not FileType.DIRECTORY:
            raise NotFound(f"{self.name} {path}: not a directory")
        where = f"{self.name} {path or '/'}"
        with self.file(descriptor, path) as device:

            def read(offset: int, length: int) -> bytes:
                data = bytearray(length)
                device.read_into(offset, data)
                return bytes(data)

            found: Iterator[Entry]
            if self.super_block.six:
                found = entries_6(read, descriptor.length, self.super_block.metadata, where)
            else:
                found = entries_5(read, descriptor.length, where)
            return sorted(found, key=lambda entry: entry.name)

    def child(self, entry: Entry, path: str) -> Descriptor:
        """The descriptor that an entry of a directory leads to; ``path`` is the entry's."""
        found = self.descriptor(entry.address, path, entry.generation)
        if found.type != entry.type:
            raise CorruptDisk(
                f"{self.name} {path}: the directory says type {entry.type}, the descriptor {found.type:d}"
            )
        return found

    def walk(self, path: str = "", *, recursive: bool = True) -> Iterator[tuple[str, Descriptor]]:
        """What is in a folder and, below each, in its own folders: paths and descriptors.

        Raises CorruptDisk for a folder that is met twice.
        """
        start = self.resolve(path)
        seen = {start.address}
        waiting = [iter(self._children(start, "/".join(_parts(path))))]
        while waiting:
            step = next(waiting[-1], None)
            if step is None:
                waiting.pop()
                continue
            name, found = step
            yield name, found
            if not recursive or found.type is not FileType.DIRECTORY:
                continue
            if found.address in seen:
                raise CorruptDisk(f"{self.name} {name}: this folder is in another one too")
            seen.add(found.address)
            waiting.append(iter(self._children(found, name)))

    def _children(self, folder: Descriptor, path: str) -> Iterator[tuple[str, Descriptor]]:
        for entry in self.entries(folder, path):
            name = f"{path}/{entry.name}" if path else entry.name
            yield name, self.child(entry, name)

    def descriptor(self, address: int, path: str, generation: int | None = None) -> Descriptor:
        """The descriptor at ``address``; it must have the directory entry's ``generation``."""
        where = f"{self.name} {path or '/'}"
        decoded = decode_5(address, dense=False)
        if decoded.kind is not Kind.DESCRIPTOR:
            raise CorruptDisk(f"{where}: {address:#x} is no address of a descriptor")
        start, _ = self._locate(self._pools, decoded, where)
        raw = self._read(start, self.super_block.descriptor_size)
        found = parse_descriptor(raw, self.super_block, address, start, where)
        if generation is not None and found.generation != generation:
            raise CorruptDisk(
                f"{where}: the directory means generation {generation} of its descriptor, "
                f"which is at {found.generation}",
                remedy="it was deleted or is being changed: try again",
            )
        return found

    def read_link(self, descriptor: Descriptor, path: str) -> str:
        """What a symbolic link says."""
        if descriptor.length > MAX_TARGET:
            raise CorruptDisk(f"{self.name} {path}: a symbolic link of {descriptor.length} bytes")
        data = bytearray(descriptor.length)
        with self.file(descriptor, path) as device:
            device.read_into(0, data)
        return data.split(b"\0")[0].decode("utf-8", "backslashreplace")

    def file(self, descriptor: Descriptor, path: str) -> VmfsFile:
        """The bytes of anything but a raw device mapping. The volume must stay open as long."""
        where = f"{self.name} {path or '/'}"
        if descriptor.type is FileType.RDM or descriptor.layout is Layout.NONE:
            raise NotSupported(
                f"{where}: a raw device mapping: its data is on another LUN",
                remedy="read that LUN, or the disk through the host",
            )
        if descriptor.layout is Layout.RESIDENT:
            return VmfsFile(self.device, where, resident=descriptor.resident(self.super_block))
        blocks = self.blocks(descriptor, path)
        return VmfsFile(self.device, where, blocks=blocks, length=descriptor.length)

    def blocks(self, descriptor: Descriptor, path: str) -> BlockMap:
        """Where the file's blocks lie. Raises UnsupportedVersion for one that has none."""
        return BlockMap(self._places(self._pools), descriptor, f"{self.name} {path or '/'}")

    def _walk(self, parts: Sequence[str], path: str, links: int | None) -> Descriptor:
        """``links``: how many may still be followed; None for none, where the last part may be one."""
        current = self.descriptor(_ROOT, "")
        for index, part in enumerate(parts):
            here = "/".join(parts[:index])
            entry = next((e for e in self.entries(current, here) if e.name == part), None)
            if entry is None:
                raise NotFound(f"{self.name} {path}: not there")
            current = self.child(entry, "/".join(parts[: index + 1]))
            if current.type is not FileType.SYMLINK:
                continue
            if links is None and index == len(parts) - 1:
                return current
            if links is None:
                raise OutsideStore(f"{self.name} {path}: {part} is a symbolic link")
            if not links:
                raise OutsideStore(f"{self.name} {path}: more than {MAX_LINKS} symbolic links on the way")
            target = self.read_link(current, path)
            following = [*self._target(parts[:index], target, path), *parts[index + 1 :]]
            return self._walk(following, path, links - 1)
        return current

    def _target(self, folder: Sequence[str], target: str, path: str) -> list[str]:
        """The parts that a symbolic link means."""
        if target.startswith("/"):
            inside = self.own_path(target)
            if inside is None:
                raise OutsideStore(f"{self.name} {path}: its link leads out of the volume, to {target!r}")
            return _parts(inside)
        parts = list(folder)
        for part in target.split("/"):
            if part == "..":
                if not parts:
                    raise OutsideStore(f"{self.name} {path}: its link leads out of the volume, to {target!r}")
                parts.pop()
            elif part not in ("", "."):
                parts.append(part)
        return parts

    def own_path(self, path: str) -> str | None:
        """``/vmfs/volumes/THIS/folder/x`` as ``folder/x``; None if it is not on this volume."""
        for known in (self.uuid, self.label):
            prefix = f"/vmfs/volumes/{known}/"
            if known and path.startswith(prefix):
                return path[len(prefix) :]
        return None

    # -- addresses -------------------------------------------------------------------------------

    def _bootstrap(self) -> None:
        if self.super_block.six:
            self._read_small_blocks()
        for kind, name, number in _POOLS:
            # VMFS-6 keeps blocks of pointers among the sub-blocks, and the file for them is empty.
            if kind is not Kind.POINTERS or not self.super_block.six:
                blocks = self._system(name, number)
                geometry = self._geometry(blocks, 0, name)
                if geometry.size != _resource_size(kind, self.super_block):
                    raise CorruptDisk(f"{self.name} .{name}.sf: resources of {geometry.size} bytes")
                self._pools[kind] = _Pool(geometry, blocks, self.super_block.cluster_header, name)

    def _read_small_blocks(self) -> None:
        """How many small blocks make a large one, from the table of blocks itself."""
        blocks = self._system("fbb", _BITMAP)
        child = self._geometry(blocks, 0, "fbb").child
        if child:
            self._small_blocks = self._geometry(blocks, child, "fbb").per_cluster

    def _system(self, name: str, number: int) -> BlockMap:
        """The map of a system file, found by its place; it may use only what has been found before it."""
        where = f"{self.name} .{name}.sf"
        at = self.super_block.descriptors + number * self.super_block.descriptor_size
        if name == "pb2" and not self.super_block.six and not self.super_block.dense:
            at = self.super_block.second_pool
        raw = self._read(at, self.super_block.descriptor_size)
        descriptor = parse_descriptor(raw, self.super_block, _ROOT + number * _STEP, at, where)
        return BlockMap(self._places(dict(self._pools)), descriptor, where)

    def _geometry(self, blocks: BlockMap, offset: int, name: str) -> Geometry:
        """A header of a resource file."""
        where = f"{self.name} .{name}.sf"
        runs = list(blocks.runs(offset, HEADER_SIZE))
        if len(runs) != 1 or runs[0].length != HEADER_SIZE or runs[0].volume_offset is None:
            raise CorruptDisk(f"{where}: no header at offset {offset}")
        raw = self._read(runs[0].volume_offset, HEADER_SIZE)
        return parse_geometry(raw, self.super_block.cluster_header, where)

    def _places(self, pools: dict[Kind, _Pool]) -> Places:
        block = self.super_block
        return Places(
            super_block=block,
            decode=decode_6 if block.six else partial(decode_5, dense=block.dense),
            locate=partial(self._locate, pools),
            read=self._read,
            large_ratio=1 << block.large_shift,
            small_blocks=self._small_blocks,
            capacity=self.device.capacity,
        )

    def _locate(self, pools: dict[Kind, _Pool], address: Address, where: str) -> tuple[int, int]:
        """Offset in the volume, and how many bytes are there. Raises CorruptDisk outside the volume."""
        block = self.super_block
        match address.kind:
            case Kind.BLOCK:
                number = address.number
                if block.six:
                    if address.resource >= self._small_blocks:
                        raise CorruptDisk(
                            f"{where}: small block {address.resource} of {self._small_blocks} of a cluster"
                        )
                    number = address.cluster * self._small_blocks + address.resource
                start, size = number * block.block_size, block.block_size
            case Kind.LARGE_BLOCK if block.six:
                size = block.block_size << block.large_shift
                start = address.number * size
            case Kind.SUB_BLOCK | Kind.POINTERS | Kind.POINTERS_2 | Kind.DESCRIPTOR:
                pool = pools.get(address.kind)
                if pool is None or not pool.size:
                    raise CorruptDisk(f"{where}: an address of kind {address.kind:d}, which it cannot have")
                start, size = pool.locate(address, where), pool.size
            case _:
                raise CorruptDisk(f"{where}: an address of kind {address.kind:d}")
        if start + size > self.device.capacity:
            raise CorruptDisk(f"{where}: an address outside the volume's {self.device.capacity} bytes")
        return start, size

    def _read(self, offset: int, length: int) -> bytes:
        if offset < 0 or offset + length > self.device.capacity:
            raise CorruptDisk(
                f"{self.name}: metadata at {offset} is outside the volume's {self.device.capacity} bytes"
            )
        data = bytearray(length)
        self.device.read_into(offset, data)
        return bytes(data)


def _resource_size(kind: Kind, super_block: Superblock) -> int:
    match kind:
        case Kind.DESCRIPTOR:
            return super_block.descriptor_size
        case Kind.SUB_BLOCK:
            return super_block.sub_block_size
        case _:
            return super_block.pointer_block


def _parts(path: str) -> list[str]:
    parts = [part for part in path.split("/") if part]
    if any(part in (".", "..") for part in parts) or "\0" in path:
        raise OutsideStore(f"{path!r} is no path inside a volume")
    return parts
