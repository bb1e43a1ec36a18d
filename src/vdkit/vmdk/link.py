"""One link of a disk: its descriptor and its extent files, opened.

What a file is, is told by its first bytes or by the descriptor's first line, never by its name, and nothing
that is not recognised is ever taken for a raw disk.

Source of facts: VMware's "Virtual Disk Format 5.0" and public reports of how VMware tells a descriptor, of
descriptor versions (1 to 4; readers differ on those above 1) and of devices behind descriptors.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from vdkit.block.device import BlockDevice, WritableDevice
from vdkit.block.forward import close_all
from vdkit.errors import (
    CorruptDisk,
    FormatError,
    LimitExceeded,
    NotADisk,
    NotSupported,
    UnsupportedVersion,
)
from vdkit.vmdk import cowd, sesparse
from vdkit.vmdk.cid import NO_PARENT
from vdkit.vmdk.cowd import CowdExtent
from vdkit.vmdk.descriptor import MAX_DESCRIPTOR, Descriptor
from vdkit.vmdk.extentline import MAX_SECTORS, Access, ExtentLine
from vdkit.vmdk.flat import FlatExtent, ZeroExtent
from vdkit.vmdk.header import GD_AT_END, MAGIC, UNFINISHED_MAGIC, SparseHeader, check_descriptor_area
from vdkit.vmdk.kinds import SECTOR, ExtentForm, check_create_type, extent_form, is_on_device
from vdkit.vmdk.names import Place, extent_place
from vdkit.vmdk.pieces import Pieces
from vdkit.vmdk.sesparse import SeSparseExtent
from vdkit.vmdk.sparse import SparseExtent, read_header
from vdkit.vmdk.stream import StreamExtent
from vdkit.vmdk.streamscan import find_footer

_GZIP = b"\x1f\x8b"
#: Bytes that tell the kinds of extent apart.
_MAGIC_BYTES = 8
#: Versions of descriptors: 3 is a disk under change tracking, what 2 and 4 add changes nothing for a reader.
_VERSIONS = range(1, 5)


@dataclass(slots=True)
class Link:
    """``device`` holds the bytes; ``header`` is that of the file the descriptor is embedded in, if it is.

    ``parts`` are the extents that ``device`` consists of; ``identity`` is equal for two names of one file.
    """

    place: Place
    descriptor: Descriptor
    device: BlockDevice
    header: SparseHeader | None
    files: tuple[Place, ...]
    unclean: bool
    notes: list[str] = field(default_factory=list)
    identity: object = None
    parts: tuple[BlockDevice, ...] = ()

    @property
    def has_parent(self) -> bool:
        return self.descriptor.parent_cid != NO_PARENT


def read_descriptor(place: Place) -> tuple[Descriptor, SparseHeader | None]:
    """The descriptor of a disk, and the header of the extent that it is embedded in."""
    with place.open() as file:
        return _read_descriptor(file)


def _read_descriptor(file: BlockDevice) -> tuple[Descriptor, SparseHeader | None]:
    where = file.name
    magic = _read(file, 0, min(_MAGIC_BYTES, file.capacity))
    if magic[:4] in (MAGIC, UNFINISHED_MAGIC):
        header = read_header(file)
        offset, length = check_descriptor_area(header, where)
        if offset + length > file.capacity:
            raise CorruptDisk(
                f"{where}: {file.capacity} bytes, cut short inside its descriptor",
                remedy="fetch the file again, or restore it from a backup",
            )
        return Descriptor.parse(_read(file, offset, length), where), header
    _refuse_other(magic, where)
    if file.capacity > MAX_DESCRIPTOR:
        raise NotADisk(
            f"{where}: no VMDK (it starts with {magic!r})",
            remedy="if it is the data of a flat disk, open that disk's descriptor, or name it as a raw image",
        )
    return Descriptor.parse(_read(file, 0, file.capacity), where), None


def _refuse_other(magic: bytes, where: str) -> None:
    if magic[:4] == cowd.MAGIC:
        raise NotADisk(f"{where}: the extent of a snapshot's delta", remedy="open the delta's descriptor")
    if magic[:4] == sesparse.MAGIC[:4]:
        raise NotADisk(
            f"{where}: the seSparse extent of a snapshot's delta", remedy="open the delta's descriptor"
        )
    if magic[:2] == _GZIP:
        raise NotADisk(f"{where}: compressed with gzip", remedy="unpack it first")
    if not magic:
        raise NotADisk(f"{where}: an empty file", remedy="check the path; what was to make it did not finish")


def _read(file: BlockDevice, offset: int, length: int) -> bytes:
    data = bytearray(length)
    file.read_into(offset, data)
    return bytes(data)


def file_identity(file: BlockDevice, place: Place) -> object:
    """Equal for two names of one file where the store can tell, else for one name."""
    known: object = getattr(file, "identity", None)
    return str(place) if known is None else known


def check_openable(descriptor: Descriptor, where: str) -> list[str]:
    """Refuse, by name, a disk whose descriptor tells that it cannot be opened; notes on what is unusual.

    Raises NotSupported, UnsupportedVersion, FormatError.
    """
    if descriptor.version not in _VERSIONS:
        raise UnsupportedVersion(
            f"{where}: a descriptor of version {descriptor.get('version')!r}; 1 to {_VERSIONS[-1]} are known"
        )
    if descriptor.get("encryptionKeys") is not None or descriptor.get("encryption.keySafe") is not None:
        raise NotSupported(
            f"{where}: the disk is encrypted", remedy="decrypt it with the VMware product that made it"
        )
    note = check_create_type(descriptor.create_type, where)
    lines = descriptor.extents
    if not lines or any(line.sectors == 0 for line in lines):
        raise FormatError(f"{where}: the descriptor names no extents, or empty ones")
    if descriptor.sectors > MAX_SECTORS:
        raise LimitExceeded(f"{where}: {descriptor.sectors} sectors are over the limit of {MAX_SECTORS}")
    for line in lines:
        extent_form(line.type, where)
        if line.access is Access.NOACCESS:
            raise NotSupported(f"{where}: extent {line.file_name!r} is marked NOACCESS")
    return [] if note is None else [note]


def embedded_line(descriptor: Descriptor, where: str) -> ExtentLine:
    """The one extent of a disk whose descriptor is inside; its file name means nothing: it may be renamed."""
    lines = descriptor.extents
    if len(lines) != 1 or extent_form(lines[0].type, where) is not ExtentForm.SPARSE:
        raise FormatError(f"{where}: an embedded descriptor must name its own sparse extent, and only that")
    return lines[0]


def _check_writing(place: Place, descriptor: Descriptor) -> None:
    """Refuse, before a file is opened for writing, what is never written."""
    forms = {extent_form(line.type, str(place)) for line in descriptor.extents}
    if ExtentForm.SESPARSE in forms:
        sesparse.refuse_writing(str(place))
    if ExtentForm.DEVICE in forms or is_on_device(descriptor.create_type):
        raise NotSupported(
            f"{place}: a disk on a device is only read here", remedy="convert it, or write the device itself"
        )


def open_link(
    place: Place,
    *,
    writable: bool = False,
    allow_paths: Sequence[str] = (),
    recover: bool = False,
    durable: bool = True,
    ignore_journal: bool = False,
) -> Link:
    """Open the extent files of one link. Raises NotADisk, FormatError, NotFound, OutsideStore."""
    with place.open() as file:
        descriptor, header = _read_descriptor(file)
        identity = file_identity(file, place)
    notes = check_openable(descriptor, str(place))
    if writable:
        _check_writing(place, descriptor)
    opener = _Opener(
        place,
        descriptor,
        writable=writable,
        recover=recover,
        durable=durable,
        ignore_journal=ignore_journal,
    )
    with ExitStack() as undo:
        if header is not None:
            devices = [opener.open_file(place, embedded_line(descriptor, str(place)))]
            files = {str(place): place}
        else:
            devices, files = [], {str(place): place}
            undo.callback(close_all, devices)
            for line in descriptor.extents:
                target = _extent_target(place, descriptor, line, allow_paths)
                devices.append(opener.open_extent(target, line))
                if target is not None:
                    files.setdefault(str(target), target)
        device = devices[0] if len(devices) == 1 else Pieces(devices, name=str(place), writable=writable)
        undo.pop_all()
    notes += opener.notes
    return Link(
        place,
        descriptor,
        device,
        header,
        tuple(files.values()),
        opener.unclean,
        notes,
        identity,
        tuple(devices),
    )


def _extent_target(
    place: Place, descriptor: Descriptor, line: ExtentLine, allow_paths: Sequence[str]
) -> Place | None:
    form = extent_form(line.type, str(place))
    if line.file_name is None or form is ExtentForm.ZERO:
        return None
    devices = form is ExtentForm.DEVICE or is_on_device(descriptor.create_type)
    return extent_place(place, line.file_name, allow_paths, devices=devices)


class _Opener:
    """Opens the extent files of one link and gathers what is notable about them."""

    def __init__(
        self,
        place: Place,
        descriptor: Descriptor,
        *,
        writable: bool,
        recover: bool,
        durable: bool,
        ignore_journal: bool,
    ) -> None:
        self._place = place
        self._has_parent = descriptor.parent_cid != NO_PARENT
        self._writable = writable
        self._recover = recover
        self._durable = durable
        self._ignore_journal = ignore_journal
        self._taken: dict[object, list[tuple[int, int]]] = {}
        self.unclean = False
        self.notes: list[str] = []

    def open_extent(self, target: Place | None, line: ExtentLine) -> BlockDevice:
        where = str(self._place)
        form = extent_form(line.type, where)
        if form is ExtentForm.ZERO:
            return ZeroExtent(f"{where}: ZERO extent", line.sectors * SECTOR)
        if target is None:
            raise FormatError(f"{where}: an extent of type {line.type!r} needs a file name")
        if target == self._place:
            raise FormatError(f"{where}: the descriptor names itself as one of its extents")
        return self.open_file(target, line)

    def open_file(self, target: Place, line: ExtentLine) -> BlockDevice:
        """The extent in ``target``; the file is closed if it cannot be opened as one."""
        write = self._writable and line.access is Access.RW
        file: BlockDevice = target.store.open_writable(target.name) if write else target.open()
        try:
            return self._extent_of(file, line, file_identity(file, target))
        except BaseException:
            file.close()
            raise

    def _extent_of(
        self, file: BlockDevice | WritableDevice, line: ExtentLine, identity: object
    ) -> BlockDevice:
        capacity = line.sectors * SECTOR
        if extent_form(line.type, str(self._place)) in (ExtentForm.FLAT, ExtentForm.DEVICE):
            if self._has_parent:
                raise FormatError(f"{self._place}: a flat extent holds everything and cannot have a parent")
            start = (line.offset_sectors or 0) * SECTOR
            self._take(identity, start, start + capacity, file.name)
            return FlatExtent(file, start=start, capacity=capacity, durable=self._durable)
        self._take(identity, 0, MAX_SECTORS * SECTOR, file.name)
        if line.offset_sectors:
            raise FormatError(f"{self._place}: sparse extent {line.file_name!r} has an offset")
        return self._sparse_of(file, capacity)

    def _take(self, identity: object, start: int, end: int, name: str) -> None:
        """Note that an extent lies there; on the same bytes there can be no other."""
        taken = self._taken.setdefault(identity, [])
        at = bisect.bisect(taken, (start, end))
        for other_start, other_end in taken[max(0, at - 1) : at + 1]:
            if start < other_end and other_start < end:
                raise FormatError(f"{self._place}: two of its extents overlap in {name}")
        taken.insert(at, (start, end))

    def _sparse_of(self, file: BlockDevice | WritableDevice, capacity: int) -> BlockDevice:
        """By its first bytes: extents of one type have been seen under the name of another."""
        magic = _read(file, 0, min(_MAGIC_BYTES, file.capacity))
        if magic[:4] == cowd.MAGIC:
            delta = CowdExtent(file, capacity=capacity, has_parent=self._has_parent, durable=self._durable)
            self._note_unclean(file.name, delta.header.unclean)
            return delta
        if magic == sesparse.MAGIC:
            return self._sesparse_of(file, capacity)
        header = read_header(file)
        if header.compressed:
            if self._writable:
                raise NotSupported(
                    f"{file.name}: a streamOptimized disk cannot be changed in place",
                    remedy="convert it to monolithicSparse or monolithicFlat first",
                )
            stream = StreamExtent(
                file, header, capacity=capacity, has_parent=self._has_parent, recover=self._recover
            )
            self.notes += [f"{file.name}: {note}" for note in stream.notes]
            return stream
        if header.directory == GD_AT_END:
            header = self._footer_of(file, header)
        sparse = SparseExtent(
            file, header, capacity=capacity, has_parent=self._has_parent, durable=self._durable
        )
        self._note_unclean(file.name, header.unclean)
        return sparse

    def _sesparse_of(self, file: BlockDevice, capacity: int) -> BlockDevice:
        if self._writable:
            sesparse.refuse_writing(file.name)
        extent = SeSparseExtent(
            file, capacity=capacity, has_parent=self._has_parent, ignore_journal=self._ignore_journal
        )
        if extent.header.journal_waits:
            self.unclean = True
            self.notes.append(
                f"{file.name}: its journal has not been replayed; the latest writes may be lost"
            )
        return extent

    def _footer_of(self, file: BlockDevice, header: SparseHeader) -> SparseHeader:
        """A plain extent too may have its tables at its end, where a footer tells of them."""
        footer = find_footer(file, header, recover=False)
        if footer is None:
            raise CorruptDisk(
                f"{file.name}: its grain directory is at its end, but there is no footer that says where",
                remedy="the file was cut short",
            )
        if self._writable:
            raise NotSupported(
                f"{file.name}: a disk with its tables at its end cannot be changed in place",
                remedy="convert it to monolithicSparse or monolithicFlat first",
            )
        return footer

    def _note_unclean(self, name: str, unclean: bool) -> None:
        if unclean:
            self.unclean = True
            self.notes.append(
                f"{name}: not closed properly when it was last written; check the guest's file systems"
            )
