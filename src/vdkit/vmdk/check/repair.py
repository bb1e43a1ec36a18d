"""``repair_disk``: work the repair out, check what it would make, and only then write it.

By default the disk stays as it is and a repaired copy is made. Source of facts: VMware's "Virtual Disk
Format 5.0".
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing, suppress

from vdkit.block.store import Store
from vdkit.block.workers import CancelToken
from vdkit.errors import AlreadyExists, CorruptDisk, NotSupported, UsageError, VixError
from vdkit.vmdk.check.apply import apply_in_place, can_unmangle, copy_repaired, unmangle
from vdkit.vmdk.check.check import check_link, check_pair
from vdkit.vmdk.check.context import Context, Files
from vdkit.vmdk.check.mend import LinkMender
from vdkit.vmdk.check.options import Duplicates, Options, Outcome, RepairReport, joined
from vdkit.vmdk.check.patch import PatchedFiles
from vdkit.vmdk.check.report import CheckReport, Progress, Severity
from vdkit.vmdk.check.subject import look_at_link
from vdkit.vmdk.check.undo import DONE, read_undo, undo_repair
from vdkit.vmdk.inuse import children_of, refuse_in_use
from vdkit.vmdk.link import read_descriptor
from vdkit.vmdk.names import Place, parent_place

#: Notes that a repair does something about, besides errors.
_MENDED_NOTES = {"unclean"}
_TIDIED_NOTES = {"stream-end"}


def repair_disk(
    store: Store,
    name: str,
    *,
    target: str | None = None,
    in_place: bool = False,
    undo: str | None = None,
    dry_run: bool = False,
    force: bool = False,
    duplicates: Duplicates = Duplicates.CLONE,
    accept_loss: bool = False,
    rebuild_header: bool = False,
    fix_cid: bool = False,
    tidy: bool = False,
    parent_name: str | None = None,
    parent_cid: int | None = None,
    create_type: str | None = None,
    max_clone: int = 16 << 30,
    allow_paths: Sequence[str] = (),
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> RepairReport:
    """Mend one link of a disk; its parents are only looked at.

    One of: ``target``, a new name for a repaired copy (extent files of a split or flat disk are named after
    it); ``in_place``, with the old bytes in the file ``undo`` (by default the name with ``.undo`` behind it);
    ``dry_run``, to see what would be done. A disk that needs nothing is neither changed nor copied.

    * ``force`` repairs in place a disk that has children.
    * ``duplicates``: what becomes of grains with two users; copies take ``max_clone`` bytes at most.
    * ``accept_loss``: a grain table that both copies have lost is emptied, a missing extent file is replaced
      by an empty one, a stream that breaks off is closed.
    * ``rebuild_header`` rewrites a header that claims a version or features that are not known.
    * ``fix_cid`` takes the parent's present content id.
    * ``tidy`` also mends what is only noted: padding at the end of a stream.
    * ``parent_name`` and ``parent_cid`` are for the lost descriptor of a child, ``create_type`` for that of a
      flat disk.

    Raises CorruptDisk if the disk cannot be repaired (nothing has been written then), UsageError, FileLocked
    (in place, while somebody writes the disk), NotSupported, AlreadyExists, what
    :func:`~vdkit.vmdk.check.check_disk` raises, and StoreError, Cancelled. In place, what fails half-way is
    put back.
    """
    if (target is not None) + in_place + dry_run != 1:
        raise UsageError(
            f"{store.name}/{name}: say whether to make a repaired copy (target), to repair in place, "
            "or only to try (dry_run)"
        )
    options = Options(
        duplicates,
        accept_loss,
        rebuild_header,
        fix_cid,
        tidy,
        parent_name,
        parent_cid,
        create_type,
        max_clone,
    )
    place = Place(store, name)
    undo_name = (undo or f"{name}.undo") if in_place else None
    if undo_name is not None:
        _finish_earlier(store, name, undo_name)
        if not force:
            _refuse_children(place)
    ctx = Context(Files(), allow_paths, True, progress, cancel)
    with closing(PatchedFiles()) as files:
        return _Repair(place, ctx, files, options, target, undo_name).run(dry_run=dry_run)


class _Repair:
    def __init__(
        self,
        place: Place,
        ctx: Context,
        files: PatchedFiles,
        options: Options,
        target: str | None,
        undo: str | None,
    ) -> None:
        self._place = place
        self._ctx = ctx
        self._files = files
        self._options = options
        self._target = target
        self._undo = undo
        self._outcome = Outcome()
        self._unmangled: str | None = None

    def run(self, *, dry_run: bool) -> RepairReport:
        before = self._check(Files())
        if not self._needed(before):
            return self._report(before, before, {}, dry_run=dry_run)
        if any(kind.startswith("sesparse") for kind in before.counts):
            raise NotSupported(
                f"{self._place}: seSparse extents are checked, but not repaired: "
                "how they are written is not public",
                remedy="let the host open it, or convert what can be read",
            )
        if before.counts.get("text-mode-transfer"):
            self._undo_text_mode()
        if self._undo is not None:
            self._refuse_in_use()
        try:
            LinkMender(self._ctx, self._files, self._options, self._outcome).run(self._place)
            after = self._check(self._files)
            changed = {
                str(place): sum(length for _, length in patch.changes())
                + abs(patch.capacity - patch.base.capacity)
                for place, patch in self._files.changed().items()
            }
            self._refuse_worse(before, after, changed)
            if not dry_run:
                self._write()
        except BaseException:
            self._drop_unmangled()
            raise
        return self._report(before, after, changed, dry_run=dry_run)

    def _refuse_in_use(self) -> None:
        """The tables of a disk that somebody writes are not damaged but unfinished."""
        subject = look_at_link(Context(Files(), self._ctx.allow_paths), self._place)
        extents = [view.place for view in subject.extents if view.place is not None and not view.missing]
        refuse_in_use(dict.fromkeys([self._place, *extents]))

    def _check(self, files: Files) -> CheckReport:
        ctx = Context(files, self._ctx.allow_paths, True, self._ctx.progress, self._ctx.cancel)
        subject = check_link(ctx, self._place)
        if subject.descriptor is not None and subject.has_parent and subject.descriptor.parent_hint:
            quiet = Context(files, self._ctx.allow_paths)
            try:
                parent = parent_place(self._place, subject.descriptor.parent_hint, self._ctx.allow_paths)
                check_pair(ctx, subject, look_at_link(quiet, parent))
            except VixError:
                pass  # a parent that cannot be looked at is no matter of this link's repair
        return ctx.reporter.report(str(self._place), subject.create_type, subject.capacity)

    def _needed(self, before: CheckReport) -> bool:
        wanted = _MENDED_NOTES | (_TIDIED_NOTES if self._options.tidy else set())
        return before.errors > 0 or any(before.counts.get(kind) for kind in wanted)

    def _refuse_worse(self, before: CheckReport, after: CheckReport, changed: dict[str, int]) -> None:
        """Nothing is written that does not make the disk better."""
        new = {f.kind for f in after.findings if f.severity is Severity.ERROR} - set(before.counts)
        better = after.errors < before.errors or (after.errors == 0 and bool(changed))
        if self._unmangled is not None:
            new, better = set(), after.errors == 0
        if better and not new and (changed or self._unmangled is not None):
            return
        first = next((f for f in after.findings if f.severity is Severity.ERROR), None)
        reason = "" if first is None else f": {first.message}"
        remedy = (
            "; ".join(self._outcome.blocked[:3]) or "restore it from a backup, or convert what can be read"
        )
        raise CorruptDisk(f"{self._place}: cannot be repaired{reason}", remedy=remedy)

    # -- writing -----------------------------------------------------------------------------------

    def _write(self) -> None:
        if self._undo is not None:
            apply_in_place(self._place, self._files, self._undo, self._ctx)
            return
        assert self._target is not None
        copy_repaired(self._place, self._files, self._target, self._ctx, ready=self._unmangled)

    def _undo_text_mode(self) -> None:
        """Work on a copy in which every carriage return before a line feed has gone."""
        if not can_unmangle(self._place):
            raise CorruptDisk(
                f"{self._place}: cannot be repaired: a transfer in text mode took bytes out of it, "
                "or changed its extent files",
                remedy="transfer it again in binary mode",
            )
        if self._target is None or self._target == self._place.name:
            raise NotSupported(
                f"{self._place}: line ends were changed in it; that is undone only in a copy",
                remedy="name a target, or transfer the file again in binary mode",
            )
        unmangle(self._place, self._target, self._ctx)
        self._unmangled = self._target
        self._files.rebase(self._place, self._place.store.open(self._target))
        self._outcome.say(
            f"{self._place}: took the carriage returns out that a text-mode transfer had put in"
        )
        self._outcome.inferred.append(f"{self._place}: every pair of CR and LF was a LF before")

    def _drop_unmangled(self) -> None:
        if self._unmangled is not None and self._place.store.exists(self._unmangled):
            self._place.store.remove(self._unmangled)

    def _report(
        self, before: CheckReport, after: CheckReport, changed: dict[str, int], *, dry_run: bool
    ) -> RepairReport:
        if self._unmangled is not None and not changed:
            changed = {str(self._place): before.files[0].size if before.files else 1}
        wrote = bool(changed) and not dry_run
        out = self._outcome
        return RepairReport(
            name=str(self._place),
            before=before,
            after=after,
            done=tuple(out.done),
            inferred=tuple(dict.fromkeys(out.inferred)),
            blocked=tuple(dict.fromkeys(out.blocked)),
            lost=joined(out.lost),
            changed=changed,
            target=self._target if wrote else None,
            undo=self._undo if wrote else None,
            dry_run=dry_run,
        )


def _finish_earlier(store: Store, name: str, undo: str) -> None:
    """A repair that was interrupted is undone first; one that was completed keeps its undo file."""
    if not store.exists(undo):
        return
    found = read_undo(store, undo)
    if found.state == DONE or found.disk != name:
        raise AlreadyExists(
            f"{store.name}/{undo}: the undo file of an earlier repair",
            remedy="undo that repair, remove the file, or name another one",
        )
    undo_repair(store, undo)


def _refuse_children(place: Place) -> None:
    cid = None
    with suppress(VixError):  # the descriptor may be what is damaged
        cid = read_descriptor(place)[0].cid
    children = children_of(place, cid)
    if children:
        raise NotSupported(
            f"{place}: it is the parent of {', '.join(children[:3])}",
            remedy="repair a copy, or force it: what its children show may change",
        )
