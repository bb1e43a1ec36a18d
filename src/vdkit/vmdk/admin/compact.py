"""Shrinking and defragmenting: the extent files of a sparse disk written anew, without what is not needed.

Each extent file is written beside the old one, grains in ascending order without gaps, and takes its name
once it is complete and durable: a crash leaves the old file or the new one, and the same bytes in either.
The content id stays.

Source of facts: VMware's "Virtual Disk Format 5.0" and the published VixDiskLib functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vdkit.block.chain import Chain
from vdkit.block.copy import zero_test
from vdkit.block.device import BlockDevice, WritableDevice
from vdkit.block.extent import ExtentKind
from vdkit.block.store import Store, replacing
from vdkit.block.workers import CancelToken
from vdkit.errors import NotSupported
from vdkit.vmdk.admin.rewrite import Rewrite, is_packed, rewrite_of
from vdkit.vmdk.admin.subject import (
    BESIDE,
    AdminResult,
    Progress,
    Subject,
    read_subject,
    refuse_locked,
)
from vdkit.vmdk.extentline import Access
from vdkit.vmdk.kinds import SECTOR, ExtentForm, extent_form
from vdkit.vmdk.names import Place
from vdkit.vmdk.open import open_disk

_PIECE = 1 << 20
#: A child's grain is held whole: it is the parent's or its own, never both.
_MAX_CHILD_GRAIN = 64 << 20


def shrink_disk(
    store: Store,
    name: str,
    *,
    allow_paths: Sequence[str] = (),
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> AdminResult:
    """Give back the grains of a sparse disk that hold only zeroes, and the room between the others.

    A child gives back a grain only where its parents read as zeroes too; where they do not, and the disk's
    version knows entries that mean zeroes, such an entry takes the grain's place. Needs room for a second
    copy of the largest extent file. Raises NotSupported for disks that are not sparse.
    """
    place = Place(store, name)
    subject = read_subject(place, allow_paths)
    if _all_flat(subject):
        raise NotSupported(
            f"{place}: a disk of type {subject.descriptor.create_type!r} has no grains to give back",
            remedy="convert it to monolithicSparse or vmfsThin, which leaves zeroes out",
        )
    with open_disk(store, name, allow_paths=allow_paths) as disk:
        parents = [link.device for link in disk.links[1:]]
        parent = Chain(parents, name=f"{place}: parents") if parents else None
        return _compact(subject, parent, drop=True, progress=progress, cancel=cancel)


def defragment_disk(
    store: Store,
    name: str,
    *,
    allow_paths: Sequence[str] = (),
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> AdminResult:
    """Put the grains of a sparse disk in ascending order, without gaps; what is in order is left alone.

    Needs room for a second copy of the largest extent file. A flat disk is in order.
    """
    subject = read_subject(Place(store, name), allow_paths)
    if _all_flat(subject):
        size = subject.extent_bytes()
        return AdminResult(size, size)
    return _compact(subject, None, drop=False, progress=progress, cancel=cancel)


def _all_flat(subject: Subject) -> bool:
    forms = {extent_form(line.type, str(subject.place)) for line in subject.lines}
    return forms <= {ExtentForm.FLAT, ExtentForm.ZERO, ExtentForm.DEVICE}


def _compact(
    subject: Subject,
    parent: BlockDevice | None,
    *,
    drop: bool,
    progress: Progress | None,
    cancel: CancelToken | None,
) -> AdminResult:
    refuse_locked(subject)
    work = _work_of(subject)
    before = subject.extent_bytes()
    total = subject.descriptor.sectors * SECTOR
    for rewrite, start in work:
        if not drop and is_packed(rewrite):
            continue

        def tell(done: int, start: int = start) -> None:
            if cancel is not None:
                cancel.check()
            if progress is not None:
                progress(start + done, total)

        _Compaction(rewrite, start, parent, drop=drop).run(tell)
    if progress is not None:
        progress(total, total)
    return AdminResult(before, subject.extent_bytes())


def _work_of(subject: Subject) -> list[tuple[Rewrite, int]]:
    """The sparse extents and where in the disk they begin; refuses what cannot be rewritten."""
    work = []
    start = 0
    for line, place in zip(subject.lines, subject.places, strict=True):
        form = extent_form(line.type, str(subject.place))
        match form:
            case ExtentForm.SPARSE | ExtentForm.COWD:
                if place is None or line.access is not Access.RW:
                    raise NotSupported(f"{subject.place}: extent {line.file_name!r} cannot be written")
                rewrite = rewrite_of(subject, line, place)
                if subject.has_parent and rewrite.grain > _MAX_CHILD_GRAIN:
                    raise NotSupported(
                        f"{place}: a child's grains of {rewrite.grain} bytes are too large to be moved",
                        remedy="convert it first",
                    )
                work.append((rewrite, start))
            case ExtentForm.FLAT | ExtentForm.ZERO | ExtentForm.DEVICE:
                pass
            case ExtentForm.SESPARSE:
                raise NotSupported(
                    f"{place}: how seSparse extents are written is not public",
                    remedy="convert it, or consolidate it on its host",
                )
        start += line.sectors * SECTOR
    return work


class _Compaction:
    """One extent file, copied grain by grain; ``parent`` is asked where zeroes might hide it."""

    def __init__(self, rewrite: Rewrite, start: int, parent: BlockDevice | None, *, drop: bool) -> None:
        self._rewrite = rewrite
        self._start = start
        self._parent = parent
        self._drop = drop
        grain = rewrite.grain
        #: Zeroes are looked for in pieces of this many bytes; a child's grain is its own or its parent's.
        self._unit = grain if rewrite.has_parent else min(grain, _PIECE)
        self._buffer = memoryview(bytearray(max(_PIECE, self._unit)))
        self._other = memoryview(bytearray(len(self._buffer) if parent is not None else 0))

    def run(self, tell: Callable[[int], None]) -> None:
        place = self._rewrite.place
        beside = f"{place.name}{BESIDE}"
        with (
            replacing(place.store, place.name, beside),
            self._rewrite.open_old() as old,
            self._rewrite.make_new(beside) as new,
        ):
            self._copy(old, new, tell)

    def _copy(self, old: BlockDevice, new: WritableDevice, tell: Callable[[int], None]) -> None:
        for run in old.extents():
            for offset in range(run.offset, run.end, len(self._buffer)):
                tell(offset)
                length = min(len(self._buffer), run.end - offset)
                match run.kind:
                    case ExtentKind.ABSENT:
                        break
                    case ExtentKind.ZERO:
                        self._put_zeroes(new, offset, length)
                    case ExtentKind.DATA:
                        self._put(old, new, offset, length)

    def _put(self, old: BlockDevice, new: WritableDevice, offset: int, length: int) -> None:
        part = self._buffer[:length]
        old.read_into(offset, part)
        if not self._drop:
            new.write_from(offset, part)
            return
        for low, high, zero in zero_runs(part, self._unit):
            if zero:
                self._put_zeroes(new, offset + low, high - low)
            else:
                new.write_from(offset + low, part[low:high])

    def _put_zeroes(self, new: WritableDevice, offset: int, length: int) -> None:
        """Zeroes need a grain, or an entry that means zeroes, only where a parent would show through."""
        if not self._rewrite.has_parent:
            return
        if self._parent is None or not self._drop:
            new.write_zeroes(offset, length)
            return
        below = self._other[:length]
        self._parent.read_into(self._start + offset, below)
        for low, high, zero in zero_runs(below, self._unit):
            if not zero:
                new.write_zeroes(offset + low, high - low)


def zero_runs(view: memoryview, unit: int) -> list[tuple[int, int, bool]]:
    """``(low, high, is zero)`` of the runs of a view, cut at multiples of ``unit``."""
    found: list[tuple[int, int, bool]] = []
    for low in range(0, len(view), unit):
        high = min(low + unit, len(view))
        zero = zero_test(view[low:high])
        if found and found[-1][2] == zero:
            found[-1] = (found[-1][0], high, zero)
        else:
            found.append((low, high, zero))
    return found
