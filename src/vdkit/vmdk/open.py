"""Opening a disk: the leaf, then every parent, each checked against its child.

Source of facts: VMware's "Virtual Disk Format 5.0" and VMware's knowledge base on mismatched content ids.
"""

from __future__ import annotations

from collections.abc import Sequence

from vdkit.block.chain import MAX_LINKS
from vdkit.block.store import Store
from vdkit.errors import CapacityMismatch, ChainError, CidMismatch, MissingParent, NotFound, NotSupported
from vdkit.vmdk.cid import NO_PARENT, format_cid
from vdkit.vmdk.disk import Disk, close_links
from vdkit.vmdk.inuse import refuse_locked
from vdkit.vmdk.link import Link, open_link
from vdkit.vmdk.names import Place
from vdkit.vmdk.parents import find_parent


def open_disk(
    store: Store,
    name: str,
    *,
    writable: bool = False,
    single_link: bool = False,
    allow_paths: Sequence[str] = (),
    recover: bool = False,
    durable: bool = True,
    keeps_tracking: bool = False,
    ignore_journal: bool = False,
) -> Disk:
    """Open the disk whose descriptor (or single file) is ``name``, with all its parents.

    ``single_link`` opens the leaf alone: its map says ABSENT for what is in the parents, and reading that
    raises. ``allow_paths`` names local folders outside the disk's own that its files and parents may lie
    in, and devices or images that it may be made of. A parent that is not where its child says is looked
    for in the child's folder and the allowed ones, by its content id. ``recover`` opens a stream that breaks
    off, for what is left of it, and ``ignore_journal`` an seSparse delta whose journal waits to be replayed;
    ``info.notes`` tells all of this. Not ``durable``: closing leaves writing out to the operating system,
    as ``cp`` does. A disk under change tracking opens for writing only with ``keeps_tracking``, the caller's
    word that it records what it changes.

    Raises NotADisk, UnsupportedVersion, CorruptDisk, NotSupported, OutsideStore, NotFound, MissingParent,
    CidMismatch, ChainError, and for writing FileLocked where a VMware product has it in use (``.lck``).
    """
    return _open(
        Place(store, name),
        writable=writable,
        single_link=single_link,
        allow_paths=allow_paths,
        recover=recover,
        durable=durable,
        keeps_tracking=keeps_tracking,
        ignore_journal=ignore_journal,
        fresh=False,
    )


def _open(
    place: Place,
    *,
    writable: bool,
    single_link: bool,
    allow_paths: Sequence[str],
    recover: bool,
    durable: bool,
    keeps_tracking: bool,
    ignore_journal: bool,
    fresh: bool,
) -> Disk:
    links: list[Link] = []
    if writable and not fresh:
        refuse_locked(place)
    try:
        leaf = open_link(
            place,
            writable=writable,
            allow_paths=allow_paths,
            recover=recover,
            durable=durable,
            ignore_journal=ignore_journal,
        )
        links.append(leaf)
        if writable:
            _check_writable(leaf, single_link=single_link, keeps_tracking=keeps_tracking)
        if not single_link:
            _open_parents(links, allow_paths, recover=recover, ignore_journal=ignore_journal)
        return Disk(links, writable=writable, fresh=fresh)
    except BaseException:
        close_links(links)
        raise


def open_created(place: Place, *, durable: bool) -> Disk:
    """A disk that this process has just made, for writing."""
    return _open(
        place,
        writable=True,
        single_link=False,
        allow_paths=(),
        recover=False,
        durable=durable,
        keeps_tracking=False,
        ignore_journal=False,
        fresh=True,
    )


def _check_writable(leaf: Link, *, single_link: bool, keeps_tracking: bool) -> None:
    if single_link and leaf.has_parent:
        raise NotSupported(
            f"{leaf.place}: a link without its parents cannot be written", remedy="open the whole chain"
        )
    if leaf.descriptor.get("changeTrackPath") is not None and not keeps_tracking:
        raise NotSupported(
            f"{leaf.place}: the disk is under change tracking, which would not notice these writes",
            remedy="turn change tracking off first, or write through the host",
        )


def _open_parents(
    links: list[Link], allow_paths: Sequence[str], *, recover: bool, ignore_journal: bool
) -> None:
    seen = {str(links[0].place)}
    while links[-1].has_parent:
        child = links[-1]
        place = find_parent(links, allow_paths)
        if str(place) in seen:
            raise _loop(child, place)
        if len(links) == MAX_LINKS:
            raise ChainError(
                f"{links[0].place}: more than {MAX_LINKS} links", remedy="consolidate the snapshots"
            )
        seen.add(str(place))
        try:
            parent = open_link(place, allow_paths=allow_paths, recover=recover, ignore_journal=ignore_journal)
        except NotFound as error:
            raise MissingParent(
                f"{child.place}: its parent cannot be opened: {error.message}",
                remedy="bring the parent's files back beside it",
            ) from error
        links.append(parent)
        if any(parent.identity == link.identity for link in links[:-1]):  # another name of the same file
            raise _loop(child, place)
        _check_parent(child, parent)


def _loop(child: Link, parent: Place) -> ChainError:
    return ChainError(f"{child.place}: its parent {parent} is above it in the same chain: a loop")


def _check_parent(child: Link, parent: Link) -> None:
    expected, found = child.descriptor.parent_cid, parent.descriptor.cid
    if expected != found or found == NO_PARENT:
        raise CidMismatch(
            f"{child.place}: made from content id {format_cid(expected)} of its parent, "
            f"but {parent.place} now has {format_cid(found)}",
            remedy="the parent was changed after the child was made: use the right parent or restore it",
        )
    if child.device.capacity != parent.device.capacity:
        raise CapacityMismatch(
            f"{child.place} has {child.device.capacity} bytes, "
            f"its parent {parent.place} {parent.device.capacity}",
            remedy="use the parent it was made from",
        )
