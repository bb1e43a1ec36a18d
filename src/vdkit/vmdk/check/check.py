"""``check_disk``: every rule, on every link, read only.

Nothing here depends on the disk opening: each part is looked at as far as it can be. Source of facts:
VMware's "Virtual Disk Format 5.0".
"""

from __future__ import annotations

from collections.abc import Sequence

from vdkit.block.chain import MAX_LINKS
from vdkit.block.device import BlockDevice
from vdkit.block.store import Store
from vdkit.block.workers import CancelToken
from vdkit.errors import ChainError, FormatError, MissingParent, NotFound, OutsideStore, VixError
from vdkit.vmdk import cowd, sesparse
from vdkit.vmdk.check import cowdcheck
from vdkit.vmdk.check.context import Context, Files, read
from vdkit.vmdk.check.flatcheck import check_flat, check_sesparse
from vdkit.vmdk.check.headercheck import look_at_header
from vdkit.vmdk.check.kdmv import check_kdmv
from vdkit.vmdk.check.report import CheckReport, Progress
from vdkit.vmdk.check.streamcheck import check_stream
from vdkit.vmdk.check.subject import ExtentView, Subject, look_at_link
from vdkit.vmdk.cid import NO_PARENT, format_cid
from vdkit.vmdk.flat import ZeroExtent
from vdkit.vmdk.header import GD_AT_END, SparseHeader
from vdkit.vmdk.kinds import SECTOR, ExtentForm
from vdkit.vmdk.link import Link, file_identity
from vdkit.vmdk.names import Place
from vdkit.vmdk.parents import find_parent
from vdkit.vmdk.streamscan import find_footer


def check_disk(
    store: Store,
    name: str,
    *,
    allow_paths: Sequence[str] = (),
    single_link: bool = False,
    deep: bool = False,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> CheckReport:
    """Look at the disk whose descriptor (or single file) is ``name``, and at its parents; change nothing.

    It does not have to open: whatever is wrong becomes a finding. ``single_link`` leaves the parents out.
    ``deep`` unpacks every grain of a stream. Names in the descriptor are followed as
    :func:`~vdkit.vmdk.open.open_disk` does, with ``allow_paths``.

    Raises only where nothing can be checked: NotFound, NotADisk, NotSupported (devices, raw device
    mappings, encrypted disks), UnsupportedVersion, LimitExceeded, StoreError, Cancelled.
    """
    ctx = Context(Files(), allow_paths, deep, progress, cancel)
    return check_with(ctx, Place(store, name), single_link=single_link)


def check_with(ctx: Context, place: Place, *, single_link: bool) -> CheckReport:
    subject = check_link(ctx, place)
    if not single_link:
        _check_chain(ctx, subject)
    return ctx.reporter.report(str(place), subject.create_type, subject.capacity)


def check_link(ctx: Context, place: Place) -> Subject:
    subject = look_at_link(ctx, place)
    needed: dict[Place, int] = {}
    for view in subject.extents:
        if view.place is not None and view.form is ExtentForm.FLAT:
            end = ((view.line.offset_sectors or 0) + view.line.sectors) * SECTOR
            needed[view.place] = max(needed.get(view.place, 0), end)
    if subject.has_parent and needed:
        ctx.error("D1", "flat-child", str(place), "a flat extent holds everything and cannot have a parent")
    seen: set[Place] = set()
    for view in subject.extents:
        if view.place is None or view.missing or view.place in seen:
            continue
        seen.add(view.place)
        _check_extent(ctx, subject, view, needed)
    if subject.lost and subject.header is not None and subject.header.header is not None:
        with ctx.files.open(place) as file:
            _check_sparse(ctx, subject, file, subject.header.header, 0)
    return subject


def _check_extent(ctx: Context, subject: Subject, view: ExtentView, needed: dict[Place, int]) -> None:
    assert view.place is not None
    try:
        file = ctx.files.open(view.place)
    except (NotFound, OutsideStore) as error:
        ctx.error("D1", "extent-outside", str(view.place), error.message)
        return
    with file:
        if view.form is ExtentForm.FLAT:
            check_flat(ctx, file, needed=needed[view.place], start=view.start)
            return
        if view.line.offset_sectors:
            ctx.error("D1", "extent-offset", file.name, "a sparse extent cannot begin inside its file")
        match sparse_form(file, view.form):
            case ExtentForm.COWD:
                looked = cowdcheck.look_at_header(ctx, file, sectors=view.line.sectors)
                if looked.header is not None:
                    cowdcheck.check_cowd(ctx, file, looked.header, start=view.start)
            case ExtentForm.SESPARSE:
                check_sesparse(ctx, file, sectors=view.line.sectors, start=view.start)
            case _:
                header = subject.header
                if header is None:
                    header = look_at_header(ctx, file, sectors=view.line.sectors)
                if header.header is not None:
                    _check_sparse(ctx, subject, file, header.header, view.start)


def sparse_form(file: BlockDevice, form: ExtentForm) -> ExtentForm:
    """By its first bytes, else by what the descriptor says."""
    magic = bytes(read(file, 0, 8))
    if magic[:4] == cowd.MAGIC:
        return ExtentForm.COWD
    if magic == sesparse.MAGIC:
        return ExtentForm.SESPARSE
    return form if magic[:4] != b"KDMV" else ExtentForm.SPARSE


def _check_sparse(
    ctx: Context, subject: Subject, file: BlockDevice, header: SparseHeader, start: int
) -> None:
    if header.compressed:
        check_stream(ctx, file, header, start=start)
        return
    if header.directory == GD_AT_END:
        try:
            footer = find_footer(file, header, recover=False)
        except FormatError as error:
            ctx.error("H7", "footer", file.name, error.message)
            return
        if footer is None:
            ctx.error("S1", "footer", file.name, "no footer that says where the grain directory is")
            return
        header = footer
    check_kdmv(ctx, file, header, start=start, has_parent=subject.has_parent)


# -- the chain -------------------------------------------------------------------------------------


def _check_chain(ctx: Context, leaf: Subject) -> None:
    chain: list[Link] = []
    subject = leaf
    while subject.descriptor is not None and subject.has_parent:
        where = str(subject.place)
        chain.append(_as_link(ctx, subject))
        if len(chain) >= MAX_LINKS:
            ctx.error("C1", "chain-depth", where, f"more than {MAX_LINKS} links")
            return
        parent = _parent_of(ctx, subject, chain)
        if parent is None:
            return
        found = _as_link(ctx, parent)
        if any(found.identity == link.identity for link in chain):
            ctx.error("C1", "chain-loop", where, f"its parent {parent.place} is above it: a loop")
            return
        check_pair(ctx, subject, parent)
        subject = parent


def _parent_of(ctx: Context, child: Subject, chain: list[Link]) -> Subject | None:
    where = str(child.place)
    try:
        place = find_parent(chain, ctx.allow_paths)
    except OutsideStore as error:
        ctx.error("C1", "parent-outside", where, error.message)
        return None
    except (MissingParent, ChainError) as error:
        ctx.error("C1", "parent-missing", where, error.message)
        return None
    for note in chain[-1].notes:
        ctx.note("C1", "parent-moved", where, note)
    if any(str(place) == str(link.place) for link in chain):
        ctx.error("C1", "chain-loop", where, f"its parent {place} is above it: a loop")
        return None
    try:
        return check_link(ctx, place)
    except VixError as error:
        if not isinstance(error, FormatError | NotFound | OutsideStore):
            raise
        ctx.error("C1", "parent-unreadable", where, error.message)
        return None


def _as_link(ctx: Context, subject: Subject) -> Link:
    """What looking for a parent wants to know."""
    with ctx.files.open(subject.place) as file:
        identity = file_identity(file, subject.place)
    descriptor = subject.descriptor
    assert descriptor is not None
    nothing = ZeroExtent(str(subject.place), 0)
    return Link(subject.place, descriptor, nothing, None, (subject.place,), False, [], identity)


def check_pair(ctx: Context, child: Subject, parent: Subject) -> None:
    """Rule C1 for one pair."""
    if child.descriptor is None or parent.descriptor is None:
        return
    where = str(child.place)
    expected, found = child.descriptor.parent_cid, parent.descriptor.cid
    if expected != found or found == NO_PARENT:
        ctx.error(
            "C1",
            "cid-mismatch",
            where,
            f"made from content id {format_cid(expected)} of its parent, but {parent.place} now has "
            f"{format_cid(found)}: the parent was changed after the child was made, or is another disk",
            expected=format_cid(expected),
            found=format_cid(found),
            repair="only if you are sure (--fix-cid, fix_cid=True): take the parent's present id; "
            "if the parent's content did change, the guest's file systems will be damaged",
        )
    if child.capacity != parent.capacity:
        ctx.error(
            "C1",
            "capacity-differs",
            where,
            f"it has {child.capacity} bytes, its parent {parent.place} {parent.capacity}",
            expected=parent.capacity,
            found=child.capacity,
        )
