"""Working out the repair of one link, in patches of its files. Nothing is written here.

Source of facts: VMware's "Virtual Disk Format 5.0".
"""

from __future__ import annotations

import struct

from vdkit.errors import VixError
from vdkit.vmdk import cowd, sparse
from vdkit.vmdk.check import cowdcheck, kdmv
from vdkit.vmdk.check.check import sparse_form
from vdkit.vmdk.check.context import Context
from vdkit.vmdk.check.headercheck import HeaderView, diagnose
from vdkit.vmdk.check.mendstream import mend_stream
from vdkit.vmdk.check.mendtables import TableMender
from vdkit.vmdk.check.mendtext import correct_sizes, put_text, regenerate
from vdkit.vmdk.check.options import Options, Outcome
from vdkit.vmdk.check.patch import Patch, PatchedFiles
from vdkit.vmdk.check.subject import ExtentView, Subject, look_at_link
from vdkit.vmdk.cid import format_cid
from vdkit.vmdk.header import GD_AT_END, UNCLEAN_OFFSET, SparseHeader
from vdkit.vmdk.kinds import SECTOR, ExtentForm
from vdkit.vmdk.link import read_descriptor
from vdkit.vmdk.names import Place, parent_place


class LinkMender:
    """``ctx`` is for cancelling, progress and allowed folders; its findings are not used."""

    def __init__(self, ctx: Context, files: PatchedFiles, options: Options, outcome: Outcome) -> None:
        self._ctx = ctx
        self._files = files
        self._options = options
        self._outcome = outcome

    def run(self, place: Place) -> None:
        subject = self._look(place)
        if subject.descriptor is not None and subject.reading.problems:
            put_text(self._files, subject, subject.reading.text)
            self._outcome.say(f"{place}: corrected the descriptor's text")
            subject = self._look(place)
        if subject.header is not None:
            self._header(place, subject.header)
            subject = self._look(place)
        if subject.descriptor is None:
            regenerate(self._files, subject, self._options, self._outcome)
        else:
            correct_sizes(self._files, subject, self._outcome)
        subject = self._look(place)
        if subject.descriptor is not None and not subject.extents and subject.embedded is None:
            self._outcome.blocked.append(f"{place}: the descriptor names no extents")
        for view in subject.extents:
            self._extent(subject, view)
        self._fix_cid(self._look(place))

    def _look(self, place: Place) -> Subject:
        quiet = Context(self._files, self._ctx.allow_paths, True, None, self._ctx.cancel)
        return look_at_link(quiet, place)

    def _header(self, place: Place, view: HeaderView) -> bool:
        """Write the header as it must have been; True if it is right then."""
        if view.header is None or view.mangled:
            return False
        if not view.changes:
            return True
        if view.consent and not self._options.rebuild_header:
            self._outcome.blocked.append(
                f"{place}: the header may be of a version that is not known here; "
                "rewriting it needs rebuild_header"
            )
            return False
        self._files.change(place).write_from(0, view.packed())
        self._outcome.say(f"{place}: rewrote the header ({', '.join(view.changes)})")
        self._outcome.inferred.append(
            f"{place}: header fields concluded from the layout: {', '.join(view.changes)}"
        )
        return True

    # -- extents -----------------------------------------------------------------------------------

    def _extent(self, subject: Subject, view: ExtentView) -> None:
        place = view.place
        if place is None or (view.missing and not self._replace_missing(view)):
            return
        if view.form is ExtentForm.FLAT:
            self._flat(view)
            return
        with self._files.open(place) as file:
            form = sparse_form(file, view.form)
        match form:
            case ExtentForm.COWD:
                self._cowd(place, view)
            case ExtentForm.SPARSE:
                self._sparse(subject, place, view)
            case _:
                return  # seSparse: only its descriptor can be mended

    def _replace_missing(self, view: ExtentView) -> bool:
        assert view.place is not None
        place, length = view.place, view.line.sectors * SECTOR
        if not self._options.accept_loss:
            self._outcome.blocked.append(
                f"{place}: the file is missing; an empty one in its place needs accept_loss"
            )
            return False
        if view.form is ExtentForm.FLAT:
            end = ((view.line.offset_sectors or 0) + view.line.sectors) * SECTOR
            self._files.change(place).resize(end)
        elif view.form is ExtentForm.SPARSE:
            _empty_sparse(self._files.change(place), view.line.sectors)
        elif view.form is ExtentForm.COWD:
            cowd.write_new(self._files.change(place), view.line.sectors)
        else:
            return False
        self._outcome.lose(view.start, length)
        self._outcome.say(f"{place}: made an empty extent in the place of the missing file")
        return True

    def _flat(self, view: ExtentView) -> None:
        assert view.place is not None
        needed = ((view.line.offset_sectors or 0) + view.line.sectors) * SECTOR
        with self._files.open(view.place) as file:
            size = file.capacity
        if size >= needed:
            return
        self._files.change(view.place).resize(needed)
        missing = min(needed - size, view.line.sectors * SECTOR)
        self._outcome.lose(view.start + view.line.sectors * SECTOR - missing, missing)
        self._outcome.say(f"{view.place}: extended with zeroes from byte {size} to {needed}")

    def _sparse(self, subject: Subject, place: Place, view: ExtentView) -> None:
        sectors = subject.descriptor.sectors if subject.embedded and subject.descriptor else view.line.sectors
        patch = self._files.change(place)
        room = None
        if subject.embedded is not None:
            room = (subject.embedded[0] // SECTOR, subject.embedded[1] // SECTOR)
        looked = diagnose(patch, sectors, room=room)
        if not self._header(place, looked):
            return
        header = looked.header
        assert header is not None
        if header.compressed:
            quiet = Context(self._files, self._ctx.allow_paths, True, self._ctx.progress, self._ctx.cancel)
            mend_stream(quiet, patch, header, view.start, self._options, self._outcome)
            return
        if header.directory == GD_AT_END:
            self._outcome.blocked.append(
                f"{place}: a plain extent with its tables at its end is not repaired"
            )
            return
        _Plain(patch, header, view.start, self._options, self._outcome).run(has_parent=subject.has_parent)
        if header.unclean:
            patch.write_from(UNCLEAN_OFFSET, b"\0")
            self._outcome.say(f"{place}: cleared the mark of an unclean end")

    def _cowd(self, place: Place, view: ExtentView) -> None:
        patch = self._files.change(place)
        looked = cowdcheck.diagnose(patch, view.line.sectors)
        header = looked.header
        if header is None:
            return
        if looked.changes:
            right = header.pack()
            for name in looked.changes:
                at = cowdcheck.FIELDS[name]
                patch.write_from(at, right[at : at + 4])
            self._outcome.say(f"{place}: rewrote the header ({', '.join(looked.changes)})")
            self._outcome.inferred.append(f"{place}: header fields concluded: {', '.join(looked.changes)}")
        _Delta(patch, header, view.start, self._options, self._outcome).run()
        if header.unclean:
            patch.write_from(1648, struct.pack("<I", 0))
            self._outcome.say(f"{place}: cleared the mark of an unclean end")

    # -- the parent --------------------------------------------------------------------------------

    def _fix_cid(self, subject: Subject) -> None:
        descriptor = subject.descriptor
        if descriptor is None or not subject.has_parent or descriptor.parent_hint is None:
            return
        try:
            place = parent_place(subject.place, descriptor.parent_hint, self._ctx.allow_paths)
            parent = read_descriptor(place)[0]
        except VixError as error:
            if self._options.fix_cid:
                self._outcome.blocked.append(f"{subject.place}: the parent cannot be read: {error.message}")
            return
        if parent.cid == descriptor.parent_cid:
            return
        if not self._options.fix_cid:
            self._outcome.blocked.append(
                f"{subject.place}: the parent has another content id; use the right parent: "
                "taking this one all the same needs fix_cid"
            )
            return
        old = descriptor.parent_cid
        descriptor.set("parentCID", format_cid(parent.cid), quoted=False)
        put_text(self._files, subject, descriptor.to_bytes())
        self._outcome.say(f"{subject.place}: took the parent's present content id {format_cid(parent.cid)}")
        self._outcome.inferred.append(
            f"{subject.place}: the parent's content is what it was when its id was {format_cid(old)}; "
            "if it is not, the guest's file systems are damaged"
        )


class _Plain:
    """A hosted sparse extent."""

    def __init__(
        self, patch: Patch, header: SparseHeader, start: int, options: Options, outcome: Outcome
    ) -> None:
        self._patch, self._header, self._start = patch, header, start
        self._options, self._outcome = options, outcome

    def run(self, *, has_parent: bool) -> None:
        TableMender(
            self._patch,
            lambda: kdmv.shape_of(self._patch, self._header, self._start),
            lambda shape: kdmv.read_directories(self._patch, self._header, shape),
            self._options,
            self._outcome,
            has_parent=has_parent,
        ).run()


class _Delta:
    """A COWD extent."""

    def __init__(
        self, patch: Patch, header: cowd.CowdHeader, start: int, options: Options, outcome: Outcome
    ) -> None:
        self._patch, self._header, self._start = patch, header, start
        self._options, self._outcome = options, outcome

    def run(self) -> None:
        patch, header = self._patch, self._header
        TableMender(
            patch,
            lambda: cowdcheck.shape_of(patch, header, self._start),
            lambda shape: cowdcheck.read_directories(patch, header, shape),
            self._options,
            self._outcome,
            has_parent=True,
        ).run()
        shape = cowdcheck.shape_of(patch, header, self._start)
        copies = cowdcheck.read_directories(patch, header, shape)
        highest = cowdcheck.highest_used(patch, shape, copies)
        if header.free < highest or header.free > -(-patch.capacity // SECTOR):
            patch.write_from(28, struct.pack("<I", highest))
            self._outcome.say(f"{patch.name}: set the first free sector to {highest}")


def _empty_sparse(patch: Patch, sectors: int) -> None:
    """A piece of a split disk, without a descriptor."""
    sparse.write_new(patch, sparse.new_header(sectors, descriptor_sectors=0))
