"""Putting a parent under a child: a chain that was taken apart or moved is put together again.

Source of facts: VMware's "Virtual Disk Format 5.0", VMware's knowledge base on mismatched content ids, and
the published VixDiskLib functions and error codes.
"""

from __future__ import annotations

from collections.abc import Sequence

from vdkit.block.chain import MAX_LINKS
from vdkit.block.store import Store
from vdkit.errors import CapacityMismatch, ChainError, CidMismatch, ParentNotAllowed, RootLink
from vdkit.vmdk.admin.subject import read_subject, refuse_locked
from vdkit.vmdk.cid import NO_PARENT, format_cid
from vdkit.vmdk.descriptor import Descriptor
from vdkit.vmdk.disk import Disk, write_descriptor
from vdkit.vmdk.names import Place, hint_for
from vdkit.vmdk.open import open_disk


def check_attach(parent: Disk, child: Disk) -> None:
    """Refuse, by its reason, to put ``parent`` under the last link of ``child``.

    ``child`` is opened with ``single_link``, or its last link is a base and takes no parent. Raises RootLink,
    ParentNotAllowed, CapacityMismatch, CidMismatch, ChainError.
    """
    _check_shape(parent, child)
    expected, found = child.links[-1].descriptor.parent_cid, parent.descriptor.cid
    if expected != found or found == NO_PARENT:
        raise CidMismatch(
            f"{child.links[-1].place}: made from content id {format_cid(expected)} of its parent, "
            f"but {parent.name} has {format_cid(found)}",
            remedy="use the parent it was made from; only if the contents are known to fit, force it",
        )


def _check_shape(parent: Disk, child: Disk) -> None:
    """All but the content ids, which may be forced."""
    bottom = child.links[-1]
    if not bottom.has_parent:
        raise RootLink(
            f"{bottom.place}: it is a base disk, which takes no parent",
            remedy="name the child of another disk, opened without its parents",
        )
    if parent.links[-1].has_parent:
        raise ParentNotAllowed(f"{parent.name}: its own parents were not opened")
    places = {str(link.place) for link in child.links}
    twice = [str(link.place) for link in parent.links if str(link.place) in places]
    if twice:
        raise ParentNotAllowed(
            f"{parent.name}: {twice[0]} would be in the chain twice: a loop", remedy="name another parent"
        )
    if parent.capacity != child.capacity:
        raise CapacityMismatch(
            f"{child.name} has {child.capacity} bytes, the parent {parent.name} {parent.capacity}",
            remedy="use the parent it was made from",
        )
    count = len(parent.links) + len(child.links)
    if count > MAX_LINKS:
        raise ChainError(f"{child.name}: {count} links are more than {MAX_LINKS}")


def attach_disk(
    store: Store,
    parent_name: str,
    child_name: str,
    *,
    parent_store: Store | None = None,
    force_cid: bool = False,
    allow_paths: Sequence[str] = (),
) -> tuple[str, ...]:
    """Record in a child where its parent is and which content id that has; returns warnings.

    ``force_cid`` takes a parent whose content id is another one than the child was made from; what the child
    then holds is right only if the parent's bytes are those it was made from. Only the child's descriptor is
    changed, in one step. Raises what :func:`check_attach` raises, and FileLocked.
    """
    place = Place(store, child_name)
    above = Place(store if parent_store is None else parent_store, parent_name)
    refuse_locked(read_subject(place, allow_paths))
    warnings: list[str] = []
    with (
        open_disk(store, child_name, single_link=True, allow_paths=allow_paths) as child,
        open_disk(above.store, above.name, allow_paths=allow_paths) as parent,
    ):
        try:
            check_attach(parent, child)
        except CidMismatch as error:
            if not force_cid or parent.descriptor.cid == NO_PARENT:
                raise
            warnings.append(
                f"{error.message}; attached all the same: unless the parent's bytes are those that the "
                "child was made from, the disk is damaged; check its file systems"
            )
        link = child.links[0]
        link.descriptor = Descriptor.parse(link.descriptor.to_bytes(), str(place))
        link.descriptor.set("parentCID", format_cid(parent.descriptor.cid), quoted=False)
        link.descriptor.set("parentFileNameHint", hint_for(place, above))
        write_descriptor(link)
    return tuple(warnings)
