"""The links of a disk as files of a datastore: what the model asks of the VMDK layer, in one place.

Names are names in the datastore (``vm/vm-000001.vmdk``). All links of a disk lie in one folder, as on a host;
only the delta of a linked clone stands on a link in the folder of the machine that it was cloned from.
Base disks are ``vmfs`` (thin or thick), deltas ``vmfsSparse``; a delta of that kind ends at 2 TiB, above that
ours are ``monolithicSparse`` (a real host would take seSparse, whose writing is not public).
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from vdkit.block.copy import copy
from vdkit.block.device import BlockDevice, WritableDevice
from vdkit.block.extent import ExtentKind, RangeSet
from vdkit.errors import ChainError, VixError
from vdkit.sim.datastore import Datastore
from vdkit.sim.faults import GenericVmConfigFault, InvalidDeviceSpec, ModelFault, from_store_error
from vdkit.vmdk import DiskType, create_child, create_disk, delete_disk, list_files, open_disk
from vdkit.vmdk.cid import format_cid
from vdkit.vmdk.cowd import MAX_SECTORS as MAX_COWD_SECTORS
from vdkit.vmdk.descriptor import Descriptor
from vdkit.vmdk.disk import close_links, write_descriptor
from vdkit.vmdk.kinds import SECTOR, ExtentForm, extent_form, geometry_for
from vdkit.vmdk.link import open_link, read_descriptor
from vdkit.vmdk.names import Place

#: Largest disk of a host, in bytes: 62 TiB.
MAX_DISK = 62 << 40
#: Links that are followed from a leaf; one more than a host's own limit of snapshots is plenty.
_MAX_LINKS = 64

_DELTA_NAME = re.compile(r"-\d{6}$")


@dataclass(frozen=True)
class ChainFacts:
    """A chain by the name of its leaf. ``parents`` from the nearest to the base; ``capacity`` in bytes."""

    name: str
    parents: tuple[str, ...]
    capacity: int
    thin: bool
    uuid: str
    content_id: str
    adapter: str

    @property
    def base(self) -> str:
        return self.parents[-1] if self.parents else self.name


@contextmanager
def storage(datastore: Datastore, name: str) -> Iterator[None]:
    """Failures of the store and the format come out as the host's faults, naming the file."""
    try:
        yield
    except ModelFault:
        raise
    except VixError as error:
        raise from_store_error(error, datastore.path(name), datastore=datastore.name) from error


# -- looking -----------------------------------------------------------------------------------------


def descriptor_of(datastore: Datastore, name: str) -> Descriptor:
    """The descriptor of one link. Raises errors of the VMDK layer."""
    return read_descriptor(Place(datastore.store, name))[0]


def inspect(datastore: Datastore, name: str) -> ChainFacts:
    """Follow the chain. Raises ModelFault."""
    with storage(datastore, name):
        leaf = here = descriptor_of(datastore, name)
        at = name
        parents: list[str] = []
        while here.parent_hint is not None:
            at = parent_of(datastore, at, here.parent_hint)
            if at == name or at in parents or len(parents) == _MAX_LINKS:
                raise ChainError(f"{datastore.path(name)}: the chain of parents does not end")
            parents.append(at)
            here = descriptor_of(datastore, at)
    return ChainFacts(
        name=name,
        parents=tuple(parents),
        capacity=leaf.sectors * SECTOR,
        thin=here.get("ddb.thinProvisioned") == "1",
        uuid=api_uuid(here.get("ddb.uuid") or ""),
        content_id=leaf.get("ddb.longContentID") or f"{leaf.cid:032x}",
        adapter=here.get("ddb.adapterType") or "lsilogic",
    )


def api_uuid(text: str) -> str:
    """``60 00 C2 9x ...`` of a descriptor to ``6000C29x-....-....`` of the API; empty stays empty."""
    digits = re.sub(r"[\s-]", "", text).upper()
    if not re.fullmatch(r"[0-9A-F]{32}", digits):
        return ""
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def beside(name: str, other: str) -> str:
    """The name of a file in the folder of ``name``; of ``other`` only the last part counts."""
    folder, slash, _ = name.rpartition("/")
    return f"{folder}{slash}{other.replace(chr(92), '/').rpartition('/')[2]}"


def parent_of(datastore: Datastore, name: str, hint: str) -> str:
    """The name of the parent that a hint means: where it leads within the datastore, or beside the child."""
    text = hint.replace("\\", "/")
    if "/" in text and not text.startswith("/"):
        led = posixpath.normpath(posixpath.join(posixpath.dirname(name), text))
        if not led.startswith("..") and datastore.exists(led):
            return led
    return beside(name, hint)


def _folders(datastore: Datastore) -> tuple[str, ...]:
    """Where parents may be: anywhere in the datastore."""
    return () if datastore.folder is None else (str(datastore.folder),)


def files_of(datastore: Datastore, name: str) -> list[str]:
    """The descriptor and the extent files of one link, as names in the datastore."""
    with storage(datastore, name):
        return list_files(datastore.store, name)


def next_delta(datastore: Datastore, name: str) -> str:
    """The name of the next delta: ``vm-000003.vmdk`` if 1 and 2 are taken."""
    stem = _DELTA_NAME.sub("", name.removesuffix(".vmdk"))
    for number in range(1, 1_000_000):
        candidate = f"{stem}-{number:06d}.vmdk"
        if not datastore.exists(candidate):
            return candidate
    raise GenericVmConfigFault(f"no free name for a delta of {datastore.path(name)}")


# -- opening -----------------------------------------------------------------------------------------


def open_leaf(datastore: Datastore, name: str) -> WritableDevice:
    """A chain whose first link is written. Raises ModelFault."""
    with storage(datastore, name):
        # The simulated host is the one that tracks changes here, so it may write to a tracked disk.
        return open_disk(
            datastore.store,
            name,
            writable=True,
            durable=False,
            keeps_tracking=True,
            allow_paths=_folders(datastore),
        )


def open_frozen(datastore: Datastore, name: str) -> BlockDevice:
    """A link with its parents, for reading. Raises ModelFault."""
    with storage(datastore, name):
        return open_disk(datastore.store, name, allow_paths=_folders(datastore))


# -- changing ----------------------------------------------------------------------------------------


def create(datastore: Datastore, name: str, capacity: int, *, thin: bool) -> None:
    """A new, empty disk. Raises ModelFault."""
    if not SECTOR <= capacity <= MAX_DISK or capacity % SECTOR:
        raise InvalidDeviceSpec(f"a disk of {capacity} bytes cannot be made")
    with storage(datastore, name):
        kind = DiskType.VMFS_THIN if thin else DiskType.VMFS_FLAT
        create_disk(datastore.store, name, capacity, disk_type=kind, durable=False).close()


def fork(datastore: Datastore, parent: str, child: str, capacity: int) -> None:
    """An empty delta over ``parent``, which is closed. Raises ModelFault."""
    # A host makes an seSparse delta where vmfsSparse ends; ours only has to hold the sectors.
    fits = capacity <= MAX_COWD_SECTORS * SECTOR
    kind = DiskType.VMFS_SPARSE if fits else DiskType.MONOLITHIC_SPARSE
    with storage(datastore, child):
        create_child(
            datastore.store,
            parent,
            child,
            disk_type=kind,
            durable=False,
            any_size=True,
            allow_paths=_folders(datastore),
        )


def merge(datastore: Datastore, child: str, parent: str) -> int:
    """Bring what ``child`` holds into ``parent``, its nearest link; returns the bytes moved.

    Both must not change meanwhile; readers of chains above see no difference at any moment, for what is
    written to ``parent`` is what they see through ``child`` anyway. :func:`adopt` completes the work.
    """
    with storage(datastore, parent):
        before = descriptor_of(datastore, parent).cid
        try:
            with open_disk(datastore.store, child, single_link=True) as alone:
                held = RangeSet(
                    (e.offset, e.length) for e in alone.extents() if e.kind is not ExtentKind.ABSENT
                )
            with (
                open_frozen(datastore, child) as source,
                open_leaf(datastore, parent) as target,
            ):
                if held:
                    copy(source, target, ranges=held)
        finally:
            # Writing gave the parent a new id; until it is adopted, the child must go on fitting.
            if descriptor_of(datastore, parent).cid != before:
                _edit(datastore, parent, cid=before)
    return held.total


def adopt(datastore: Datastore, child: str, parent: str, grandchildren: list[str]) -> None:
    """After :func:`merge`: ``parent`` takes the place and the content id of ``child``, which is deleted."""
    with storage(datastore, parent):
        old = descriptor_of(datastore, child)
        _edit(datastore, parent, cid=old.cid)
        for name in grandchildren:
            _edit(datastore, name, parent_cid=old.cid, hint=parent.rpartition("/")[2])
    delete(datastore, child)


def unadopt(datastore: Datastore, child: str, parent: str, cid: int) -> None:
    """Take back an :func:`adopt` that was cut short while ``child`` was still there."""
    folder = child.rpartition("/")[0]
    with storage(datastore, parent):
        _edit(datastore, parent, cid=cid)
        fitting = descriptor_of(datastore, child).cid
        for file in datastore.files(folder):
            name = beside(child, file)
            if not file.endswith(".vmdk") or name == child or not is_link(datastore, name):
                continue
            hint = descriptor_of(datastore, name).parent_hint
            if hint is not None and parent_of(datastore, name, hint) == parent:
                _edit(datastore, name, parent_cid=fitting, hint=child.rpartition("/")[2])


def is_link(datastore: Datastore, name: str) -> bool:
    """True if the file is the descriptor of a link."""
    try:
        descriptor_of(datastore, name)
    except VixError:
        return False
    return True


def is_whole(datastore: Datastore, name: str) -> bool:
    """True if the descriptor of a link and all its extent files are there."""
    return is_link(datastore, name) and all(datastore.exists(file) for file in files_of(datastore, name))


def delete(datastore: Datastore, name: str) -> None:
    """One link, descriptor and extent files. Raises ModelFault."""
    with storage(datastore, name):
        delete_disk(datastore.store, name)


def grow(datastore: Datastore, name: str, capacity: int) -> None:
    """Lengthen a closed base disk of one flat extent. Raises ModelFault."""
    if capacity % SECTOR or capacity > MAX_DISK:
        raise InvalidDeviceSpec(f"a disk cannot be grown to {capacity} bytes")
    with storage(datastore, name):
        found = descriptor_of(datastore, name)
        lines = found.extents
        if len(lines) != 1 or extent_form(lines[0].type, name) is not ExtentForm.FLAT:
            raise InvalidDeviceSpec(f"{datastore.path(name)} is not a flat disk and cannot be grown")
        with datastore.store.open_writable(beside(name, lines[0].file_name or "")) as file:
            file.resize(capacity)
        with _editing(datastore, name) as text:
            _enlarge(text, capacity // SECTOR)


def _enlarge(text: Descriptor, sectors: int) -> None:
    text.replace_extents([replace(text.extents[0], sectors=sectors)])
    geometry = geometry_for(sectors, text.get("ddb.adapterType") or "lsilogic")
    text.set("ddb.geometry.cylinders", str(geometry.cylinders))
    text.set("ddb.geometry.heads", str(geometry.heads))
    text.set("ddb.geometry.sectors", str(geometry.sectors))


def _edit(
    datastore: Datastore, name: str, *, cid: int | None = None, parent_cid: int | None = None, hint: str = ""
) -> None:
    with _editing(datastore, name) as found:
        if cid is not None:
            found.set_cid(cid)
        if parent_cid is not None:
            found.set("parentCID", format_cid(parent_cid), quoted=False)
            found.set("parentFileNameHint", hint)


@contextmanager
def _editing(datastore: Datastore, name: str) -> Iterator[Descriptor]:
    """A descriptor to change; it is written at the end, wherever it lies."""
    link = open_link(Place(datastore.store, name))
    try:
        yield link.descriptor
        write_descriptor(link)
    finally:
        close_links([link])
