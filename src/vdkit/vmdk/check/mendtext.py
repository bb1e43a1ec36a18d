"""Descriptors that are lost or wrong: written anew from the extent files, in a patch.

Source of facts: VMware's "Virtual Disk Format 5.0", and VMware's knowledge base on recreating a missing
descriptor: the size comes from the data file, the geometry from the size, the content id is new.
"""

from __future__ import annotations

from vdkit.errors import LimitExceeded, UsageError, VixError
from vdkit.vmdk import cowd, sesparse
from vdkit.vmdk.check.context import read
from vdkit.vmdk.check.options import Options, Outcome
from vdkit.vmdk.check.patch import PatchedFiles
from vdkit.vmdk.check.subject import Subject, lost_extents
from vdkit.vmdk.cid import new_cid, new_long_id
from vdkit.vmdk.descriptor import Descriptor
from vdkit.vmdk.extentline import Access, ExtentLine
from vdkit.vmdk.header import SparseHeader
from vdkit.vmdk.kinds import SECTOR
from vdkit.vmdk.names import Place, base_name
from vdkit.vmdk.template import Parent, base_ddb, new_descriptor

_NEEDS_PARENT = "name the parent of this delta and its content id (parent_name, parent_cid)"


def put_text(files: PatchedFiles, subject: Subject, data: bytes) -> None:
    """Write the descriptor where it belongs."""
    patch = files.change(subject.place)
    if subject.embedded is None:
        patch.resize(len(data))
        patch.write_from(0, data)
        return
    offset, room = subject.embedded
    if len(data) > room:
        raise LimitExceeded(f"{subject.place}: descriptor of {len(data)} bytes does not fit its {room} bytes")
    patch.write_from(offset, data.ljust(room, b"\0"))


def regenerate(files: PatchedFiles, subject: Subject, options: Options, outcome: Outcome) -> None:
    """A new descriptor where there is none."""
    place = subject.place
    if subject.embedded is not None:
        if subject.header is None or subject.header.header is None:
            return
        header = subject.header.header
        create_type = "streamOptimized" if header.compressed else "monolithicSparse"
        lines = [ExtentLine(Access.RW, header.capacity, "SPARSE", base_name(place.name))]
        parent = _parent(options)
    else:
        create_type, lines = _from_files(files, place, options)
        needs = create_type in ("vmfsSparse", "seSparse")
        parent = _parent(options)
        if needs and parent is None:
            outcome.blocked.append(f"{place}: {_NEEDS_PARENT}")
            return
    if not lines:
        return
    made = _descriptor(place, create_type, lines, parent)
    put_text(files, subject, made.to_bytes())
    outcome.say(f"{place}: wrote a new descriptor")
    sectors = sum(line.sectors for line in lines)
    outcome.inferred.append(
        f"{place}: type {create_type}, {sectors} sectors, new content id {made.cid:08x}, "
        + ("no parent" if parent is None else f"parent {parent.hint!r}")
    )


def _parent(options: Options) -> Parent | None:
    if options.parent_name is None and options.parent_cid is None:
        return None
    if options.parent_name is None or options.parent_cid is None:
        raise UsageError("a parent needs both its name and its content id")
    return Parent(options.parent_cid, options.parent_name)


def _descriptor(place: Place, create_type: str, lines: list[ExtentLine], parent: Parent | None) -> Descriptor:
    cid = new_cid()
    sectors = sum(line.sectors for line in lines)
    ddb = {"longContentID": new_long_id(cid)} if parent is not None else base_ddb(sectors, "lsilogic", cid)
    return new_descriptor(
        where=str(place), create_type=create_type, extents=lines, cid=cid, ddb=ddb, parent=parent
    )


def _from_files(files: PatchedFiles, place: Place, options: Options) -> tuple[str, list[ExtentLine]]:
    """What the data files beside a missing descriptor tell."""
    found = lost_extents(place)
    kinds = {kind for kind, _ in found}
    if len(kinds) != 1:
        raise UsageError(
            f"{place}: data files of several kinds have that name ({', '.join(sorted(n for _, n in found))})",
            remedy="move those away that belong to another disk",
        )
    kind = kinds.pop()
    sizes = [(name, _sectors(files, place.beside(name), kind)) for _, name in found]
    match kind:
        case "flat":
            create_type = options.create_type or "vmfs"
            hosted = create_type.casefold() == "monolithicflat"
            text, offset = ("FLAT", 0) if hosted else ("VMFS", None)
            return create_type, [ExtentLine(Access.RW, n, text, name, offset) for name, n in sizes]
        case "f":
            return "twoGbMaxExtentFlat", [ExtentLine(Access.RW, n, "FLAT", name, 0) for name, n in sizes]
        case "s":
            return "twoGbMaxExtentSparse", [ExtentLine(Access.RW, n, "SPARSE", name) for name, n in sizes]
        case "delta":
            return "vmfsSparse", [ExtentLine(Access.RW, n, "VMFSSPARSE", name) for name, n in sizes]
        case _:
            return "seSparse", [ExtentLine(Access.RW, n, "SESPARSE", name) for name, n in sizes]


def _sectors(files: PatchedFiles, place: Place, kind: str) -> int:
    with files.open(place) as file:
        if kind in ("flat", "f"):
            return -(-file.capacity // SECTOR)
        try:
            if kind == "s":
                return SparseHeader.parse(bytes(read(file, 0, SECTOR)), file.name).capacity
            if kind == "delta":
                data = bytes(read(file, 0, cowd.HEADER_SECTORS * SECTOR))
                return cowd.CowdHeader.parse(data, file.capacity, file.name).capacity
            return sesparse.SeSparseHeader.read(file).capacity
        except VixError as error:
            raise UsageError(
                f"{place}: its size cannot be told without a descriptor: {error.message}",
                remedy="restore the descriptor first",
            ) from error


def correct_sizes(files: PatchedFiles, subject: Subject, outcome: Outcome) -> None:
    """The extent line of a disk with its descriptor inside follows the header."""
    descriptor, view = subject.descriptor, subject.header
    if descriptor is None or view is None or view.header is None:
        return
    header = view.header
    lines = list(descriptor.extents)
    right = len(lines) == 1 and lines[0].sectors <= header.capacity < lines[0].sectors + header.grain
    if right and lines[0].type == "SPARSE":
        return
    sectors = lines[0].sectors if right else header.capacity
    descriptor.replace_extents([ExtentLine(Access.RW, sectors, "SPARSE", base_name(subject.place.name))])
    put_text(files, subject, descriptor.to_bytes())
    outcome.say(f"{subject.place}: set the extent line to {sectors} sectors")
    outcome.inferred.append(
        f"{subject.place}: the disk has {sectors} sectors, as the header and its tables say"
    )
