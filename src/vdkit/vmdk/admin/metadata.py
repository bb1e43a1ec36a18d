"""The disk database of a descriptor: its ``ddb.`` entries, by their names without the prefix.

Source of facts: VMware's "Virtual Disk Format 5.0" (look-ups go from the leaf to the base) and the published
VixDiskLib functions and key names.
"""

from __future__ import annotations

import re

from vdkit.errors import KeyNotFound, NotSupported, UsageError
from vdkit.vmdk.cid import format_cid
from vdkit.vmdk.descriptor import Descriptor
from vdkit.vmdk.disk import Disk
from vdkit.vmdk.info import database

_PREFIX = "ddb."
_UUID = re.compile(r"([0-9A-Fa-f]{2}[ -]?){15}[0-9A-Fa-f]{2}")
_LONG_ID = re.compile(r"[0-9A-Fa-f]{32}")
_NUMBER = re.compile(r"[0-9]{1,10}")
#: Keys whose values are numbers.
_NUMBERS = {
    name.casefold()
    for name in (
        "toolsVersion",
        "virtualHWVersion",
        "geometry.cylinders",
        "geometry.heads",
        "geometry.sectors",
        "geometry.biosCylinders",
        "geometry.biosHeads",
        "geometry.biosSectors",
        "logicalSectorSize",
        "physicalSectorSize",
    )
}


def read_metadata(disk: Disk) -> dict[str, str]:
    """All entries, the leaf's first; where several links have one, that nearest to the leaf counts."""
    found: dict[str, str] = {}
    seen: set[str] = set()
    for link in disk.links:
        for key, value in link.descriptor.items(_PREFIX):
            if key.casefold() not in seen:
                seen.add(key.casefold())
                found[key[len(_PREFIX) :]] = value
    return found


def read_metadata_key(disk: Disk, key: str) -> str:
    """One entry; keys are case-insensitive. Raises KeyNotFound."""
    value = database(disk.links, key)
    if value is None:
        raise KeyNotFound(f"{disk.name}: no metadata {key!r}", remedy="list the keys that there are")
    return value


def write_metadata(disk: Disk, key: str, value: str) -> None:
    """Set an entry of the leaf, in its descriptor at once; the content id and all other lines stay.

    Raises ReadOnly, UsageError for values that a descriptor cannot hold or that the key cannot have, and
    LimitExceeded, before anything is written, if an embedded descriptor has no room left.
    """
    _check(disk, key, value)

    def change(descriptor: Descriptor) -> None:
        descriptor.set(f"{_PREFIX}{key}", value)

    disk.edit_descriptor(change)


def _check(disk: Disk, key: str, value: str) -> None:
    folded = key.casefold()
    if folded == "encoding":
        raise NotSupported(f"{disk.name}: the encoding of the descriptor cannot be changed by naming another")
    if folded == "uuid":
        wanted, form = _UUID, "16 bytes in hexadecimal"
    elif folded == "longcontentid":
        wanted, form = _LONG_ID, "32 hexadecimal digits"
    elif folded in _NUMBERS:
        wanted, form = _NUMBER, "a number"
    else:
        return
    if wanted.fullmatch(value) is None:
        raise UsageError(f"{disk.name}: {key} {value!r} is not {form}")
    if folded == "longcontentid" and value[-8:].casefold() != format_cid(disk.descriptor.cid):
        raise UsageError(
            f"{disk.name}: longContentID {value!r} does not end in the disk's content id "
            f"{format_cid(disk.descriptor.cid)}"
        )
