"""What there is to say about a disk, open or not, as plain data.

Source of facts: VMware's "Virtual Disk Format 5.0" (look-ups go from the leaf to the base) and the published
VixDiskLib information structure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from vdkit.block.store import Store
from vdkit.errors import VixError
from vdkit.vmdk.cid import NO_PARENT
from vdkit.vmdk.descriptor import Descriptor
from vdkit.vmdk.kinds import SECTOR, Geometry
from vdkit.vmdk.link import check_openable, embedded_line, read_descriptor
from vdkit.vmdk.names import Place


class Described(Protocol):
    """A link, open or only read about."""

    @property
    def place(self) -> Place: ...

    @property
    def descriptor(self) -> Descriptor: ...

    @property
    def files(self) -> Sequence[Place]: ...

    @property
    def unclean(self) -> bool: ...

    @property
    def notes(self) -> Sequence[str]: ...


@dataclass(frozen=True, slots=True)
class LinkInfo:
    """One link; ``files`` are names in the link's store, the descriptor first."""

    name: str
    create_type: str
    cid: int
    parent_cid: int | None
    parent_hint: str | None
    files: tuple[str, ...]
    unclean: bool


@dataclass(frozen=True, slots=True)
class DiskInfo:
    """``capacity`` in bytes. Values of the disk database are looked up from the leaf to the base."""

    capacity: int
    create_type: str
    adapter: str | None
    geometry: Geometry | None
    bios_geometry: Geometry | None
    cid: int
    parent_cid: int | None
    parent: str | None
    uuid: str | None
    long_content_id: str | None
    hardware_version: str | None
    thin: bool
    encoding: str
    sector_size: int
    change_tracking: str | None
    links: tuple[LinkInfo, ...]
    files: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def unclean(self) -> bool:
        """Some link was not closed properly when it was last written."""
        return any(link.unclean for link in self.links)


def disk_info(links: Sequence[Described], capacity: int) -> DiskInfo:
    """``links`` leaf first; ``capacity`` in bytes."""
    leaf = links[0].descriptor
    shown = tuple(_link_info(link) for link in links)
    return DiskInfo(
        capacity=capacity,
        create_type=leaf.create_type,
        adapter=database(links, "adapterType"),
        geometry=_geometry(links, "geometry.cylinders", "geometry.heads", "geometry.sectors"),
        bios_geometry=_geometry(
            links, "geometry.biosCylinders", "geometry.biosHeads", "geometry.biosSectors"
        ),
        cid=leaf.cid,
        parent_cid=shown[0].parent_cid,
        parent=leaf.parent_hint,
        uuid=database(links, "uuid"),
        long_content_id=leaf.get("ddb.longContentID"),
        hardware_version=database(links, "virtualHWVersion"),
        thin=database(links, "thinProvisioned") == "1",
        encoding=leaf.encoding,
        sector_size=sector_size(links),
        change_tracking=leaf.get("changeTrackPath"),
        links=shown,
        files=tuple(name for link in shown for name in link.files),
        notes=tuple(note for link in links for note in link.notes),
    )


@dataclass(frozen=True, slots=True)
class _OnlyRead:
    """A link of which no more than the descriptor was read."""

    place: Place
    descriptor: Descriptor
    files: tuple[Place, ...]
    unclean: bool
    notes: tuple[str, ...]


def describe_only(store: Store, name: str) -> DiskInfo:
    """The facts of one link from its descriptor, also of a disk that cannot be opened here.

    ``notes`` says why it cannot be: it is a raw device mapping, a vSAN object, encrypted, or files of it are
    missing. Extent files are not opened, and parents not looked for. Raises NotADisk, FormatError, NotFound.
    """
    place = Place(store, name)
    descriptor, header = read_descriptor(place)
    notes: list[str] = []
    files = [place]
    try:
        notes += check_openable(descriptor, str(place))
        if header is not None:
            embedded_line(descriptor, str(place))
    except VixError as error:
        notes.append(f"cannot be opened: {error}")
    if header is None:
        for line in descriptor.extents:
            if line.file_name is None:
                continue
            notes += _about_extent(place, line.file_name, line.type)
            named = Place(store, line.file_name)
            beside = named if "/" in line.file_name else place.beside(line.file_name)
            if beside not in files:
                files.append(beside)
    unclean = header is not None and header.unclean
    return disk_info(
        [_OnlyRead(place, descriptor, tuple(files), unclean, tuple(notes))], descriptor.sectors * SECTOR
    )


def _about_extent(place: Place, name: str, kind: str) -> list[str]:
    if "/" in name or "\\" in name:
        return [f"{kind} extent {name!r} is outside the disk's folder"]
    beside = place.beside(name)
    if kind == "VMFSRDM":
        return [f"its mapping file is {beside.name}; it holds no data"]
    try:
        missing = not beside.store.exists(beside.name)
    except VixError as error:
        return [str(error)]
    return [f"{kind} extent {beside.name} is missing"] if missing else []


def database(links: Sequence[Described], key: str) -> str | None:
    """A ``ddb.`` value of the first link, from the leaf on, that has it."""
    for link in links:
        value = link.descriptor.get(f"ddb.{key}")
        if value is not None:
            return value
    return None


def sector_size(links: Sequence[Described]) -> int:
    """Bytes of the sector that a guest sees: 4096 for a 4Kn disk, else 512."""
    return 4096 if database(links, "logicalSectorSize") == "4096" else 512


def _geometry(links: Sequence[Described], *keys: str) -> Geometry | None:
    values = [database(links, key) for key in keys]
    numbers = [int(v) for v in values if v is not None and v.isascii() and v.isdecimal() and len(v) < 10]
    return Geometry(*numbers) if len(numbers) == 3 else None


def _link_info(link: Described) -> LinkInfo:
    descriptor = link.descriptor
    return LinkInfo(
        name=str(link.place),
        create_type=descriptor.create_type,
        cid=descriptor.cid,
        parent_cid=None if descriptor.parent_cid == NO_PARENT else descriptor.parent_cid,
        parent_hint=descriptor.parent_hint,
        files=tuple(place.name for place in link.files),
        unclean=link.unclean,
    )
