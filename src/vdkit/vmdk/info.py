"""What there is to say about an open disk, as plain data.

Source of facts: VMware's "Virtual Disk Format 5.0" (look-ups go from the leaf to the base) and the published
VixDiskLib information structure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vdkit.vmdk.cid import NO_PARENT
from vdkit.vmdk.kinds import Geometry
from vdkit.vmdk.link import Link


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


def disk_info(links: Sequence[Link]) -> DiskInfo:
    """``links`` leaf first."""
    leaf = links[0].descriptor
    shown = tuple(_link_info(link) for link in links)
    return DiskInfo(
        capacity=links[0].device.capacity,
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


def database(links: Sequence[Link], key: str) -> str | None:
    """A ``ddb.`` value of the first link, from the leaf on, that has it."""
    for link in links:
        value = link.descriptor.get(f"ddb.{key}")
        if value is not None:
            return value
    return None


def sector_size(links: Sequence[Link]) -> int:
    """Bytes of the sector that a guest sees: 4096 for a 4Kn disk, else 512."""
    return 4096 if database(links, "logicalSectorSize") == "4096" else 512


def _geometry(links: Sequence[Link], *keys: str) -> Geometry | None:
    values = [database(links, key) for key in keys]
    numbers = [int(v) for v in values if v is not None and v.isascii() and v.isdecimal() and len(v) < 10]
    return Geometry(*numbers) if len(numbers) == 3 else None


def _link_info(link: Link) -> LinkInfo:
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
