"""Renaming and moving a disk: its descriptor, extent files and change map.

A disk of several files is renamed with two descriptors, the old one and the new one, that take turns: one
names the files as they are, the other as they will be after the next file is renamed. So at every moment
one of the two opens. From folder to folder that holds for readers that are allowed both folders.

Source of facts: VMware's "Virtual Disk Format 5.0" and the published VixDiskLib functions.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vdkit.block.device import WritableDevice
from vdkit.block.local import FolderStore
from vdkit.block.store import Store
from vdkit.errors import AlreadyExists, NotSupported, UsageError, VixError
from vdkit.vmdk.admin.copyover import Copies, drop_files
from vdkit.vmdk.admin.subject import Subject, read_subject, refuse_locked
from vdkit.vmdk.descriptor import Descriptor
from vdkit.vmdk.embedded import descriptor_room, rewrite_embedded
from vdkit.vmdk.extentline import check_text
from vdkit.vmdk.inuse import children_of
from vdkit.vmdk.kinds import ExtentForm, extent_form
from vdkit.vmdk.names import Place, base_name, extent_place, hint_for, parent_place, stem
from vdkit.vmdk.textfile import rewrite_text, write_text

#: What a descriptor says while it is being written.
_UNKNOWN = -1


@dataclass(frozen=True, slots=True)
class Part:
    """One file and its place after the rename."""

    old: Place
    new: Place


def rename_disk(
    store: Store,
    old: str,
    new: str,
    *,
    target_store: Store | None = None,
    force: bool = False,
    allow_paths: Sequence[str] = (),
) -> None:
    """Give a disk and its files the name ``new``, in ``target_store`` if that is given.

    Files of the same file system are renamed, others copied, compared and then removed. A child keeps its
    parent. Nothing is ever replaced. Raises AlreadyExists, FileLocked, and NotSupported if other disks in
    the folder have this one as their parent, which only ``force`` leaves without it.
    """
    subject = read_subject(Place(store, old), ())
    target = Place(store if target_store is None else target_store, new)
    if _same_store(store, target.store) and old == new:
        raise UsageError(f"{subject.place}: that is its name already")
    check_text(new, "disk name")
    refuse_locked(subject)
    _refuse_children(subject, force=force)
    parts = _parts(subject, target)
    for place in (target, *(part.new for part in parts)):
        if place.store.exists(place.name):
            raise AlreadyExists(
                f"{place}: it exists already", remedy="choose another name or remove it first"
            )
    hint = _hint(subject, target, allow_paths)
    move = _Move(subject, target, parts, hint)
    if not _same_file_system(subject.place, target) or (subject.header is not None and hint is not None):
        # A single file cannot be moved and get another hint in one step: it is copied.
        move.by_copying()
    elif subject.header is not None:
        move.single_file()
    else:
        move.in_turns()


def _refuse_children(subject: Subject, *, force: bool) -> None:
    children = [] if force else children_of(subject.place, subject.descriptor.cid)
    if children:
        raise NotSupported(
            f"{subject.place}: it is the parent of {', '.join(children)}, which would no longer find it",
            remedy="rename it with force, then attach it to each of them",
        )


def _parts(subject: Subject, target: Place) -> list[Part]:
    """The files beside the descriptor and their new names; those of an embedded descriptor are one."""
    places = [] if subject.header is not None else [place for place in subject.places if place is not None]
    tracking = subject.descriptor.get("changeTrackPath")
    names: dict[Place, str] = {}
    for number, (line, place) in enumerate(zip(subject.lines, subject.places, strict=True), 1):
        if place is None or place not in places or place in names:
            continue
        flat = extent_form(line.type, str(subject.place)) is ExtentForm.FLAT
        if len(subject.lines) == 1:
            ending = "-flat.vmdk" if flat else "-delta.vmdk"
        else:
            ending = f"-{'f' if flat else 's'}{number:03d}.vmdk"
        names[place] = _renamed(subject, place, target, ending)
    if tracking:
        place = extent_place(subject.place, tracking, ())
        if place.store.exists(place.name):
            names[place] = _renamed(subject, place, target, "-ctk.vmdk")
    if len(set(names.values())) != len(names) or base_name(target.name) in names.values():
        raise NotSupported(f"{subject.place}: its files would not all get names of their own")
    return [Part(place, target.beside(name)) for place, name in names.items()]


def _renamed(subject: Subject, place: Place, target: Place, ending: str) -> str:
    front, name = stem(base_name(subject.place.name)), base_name(place.name)
    if name.startswith(front) and name != front:
        return stem(base_name(target.name)) + name[len(front) :]
    return stem(base_name(target.name)) + ending


def _hint(subject: Subject, target: Place, allow_paths: Sequence[str]) -> str | None:
    """What a child has to call its parent from the new folder; None if it stays as it is."""
    text = subject.descriptor.parent_hint
    same = _same_store(subject.place.store, target.store) and subject.place.folder == target.folder
    if not subject.has_parent or text is None or same:
        return None
    made = hint_for(target, parent_place(subject.place, text, allow_paths))
    return None if made == text else made


def _same_store(one: Store, other: Store) -> bool:
    if isinstance(one, FolderStore) and isinstance(other, FolderStore):
        return os.path.realpath(one.name) == os.path.realpath(other.name)
    return one is other


def _same_file_system(old: Place, new: Place) -> bool:
    if _same_store(old.store, new.store):
        return True
    return (
        isinstance(old.store, FolderStore)
        and isinstance(new.store, FolderStore)
        and Path(old.store.name).stat().st_dev == Path(new.store.name).stat().st_dev
    )


def _rename(part: Part) -> None:
    """Within one store, or between two local folders through the folder that holds both."""
    old, new = part.old, part.new
    if _same_store(old.store, new.store):
        old.store.rename(old.name, new.name)
        return
    roots = [os.path.realpath(old.store.name), os.path.realpath(new.store.name)]
    above = os.path.commonpath(roots)
    inside = [os.path.relpath(root, above) for root in roots]
    FolderStore(above).rename(
        posixpath.normpath(f"{inside[0]}/{old.name}"), posixpath.normpath(f"{inside[1]}/{new.name}")
    )


class _Move:
    """``hint`` is the child's new one, None if it keeps what it has."""

    def __init__(self, subject: Subject, target: Place, parts: list[Part], hint: str | None) -> None:
        self._subject = subject
        self._target = target
        self._parts = parts
        self._hint = hint
        self._state = 0
        #: What each descriptor says is moved already; the new one is made later.
        self._says: dict[Place, int] = {subject.place: 0}

    def single_file(self) -> None:
        """An embedded descriptor: the file has the new name at once; the extent line follows it."""
        for part in self._parts:  # a change map, which opening a disk does not need
            _rename(part)
        _rename(Part(self._subject.place, self._target))
        with self._target.store.open_writable(self._target.name) as file:
            self._follow(file)

    def _follow(self, file: WritableDevice) -> None:
        """The name in an embedded extent line means nothing; where it does not fit it stays as it is.

        A stream stays byte for byte what it was, for the manifests of its digest.
        """
        header = self._subject.header
        if header is None or (header.compressed and self._hint is None):
            return
        data = self._text_at(self._target, len(self._parts)).to_bytes()
        if self._hint is not None or len(data) <= descriptor_room(file, header):
            rewrite_embedded(file, header, data)

    def by_copying(self) -> None:
        """The old disk is removed only once the new one is complete."""
        copies = Copies()
        try:
            for part in self._parts:
                copies.copy(part.old, part.new)
            if self._subject.header is not None:
                copies.copy(self._subject.place, self._target, self._follow)
            else:
                copies.write(self._target, self._text_at(self._target, len(self._parts)).to_bytes())
            copies.finish()
        except BaseException:
            copies.undo()
            raise
        drop_files([*(part.old for part in self._parts), self._subject.place])

    # -- two descriptors in turns --------------------------------------------------------------------

    def in_turns(self) -> None:
        target, source = self._target, self._subject.place
        count = len(self._parts)
        if not count:
            raise NotSupported(f"{source}: the disk has no files of its own")
        try:
            self._make_new()
            for state in range(1, count + 1):
                self._go(state)
            self._say(target, count)
        except BaseException:
            with suppress(VixError):
                self._go_back()
            raise
        source.store.remove(source.name)

    def _go_back(self) -> None:
        for state in range(self._state - 1, -1, -1):
            self._go(state)
        self._say(self._subject.place, 0)
        if self._target in self._says:
            self._target.store.remove(self._target.name)

    def _make_new(self) -> None:
        data = self._text_at(self._target, 1).to_bytes()
        with self._target.store.create(self._target.name) as file:
            self._says[self._target] = 1
            write_text(file, data)
            file.flush()

    def _go(self, state: int) -> None:
        """To the next state or the one before: one descriptor says it already, or the idle one is made to."""
        if state not in self._says.values():
            idle = (place for place, said in self._says.items() if said != self._state)
            self._say(next(idle, self._subject.place), state)
        forward = state > self._state
        part = self._parts[state - 1] if forward else self._parts[state]
        _rename(part if forward else Part(part.new, part.old))
        self._state = state

    def _say(self, place: Place, state: int) -> None:
        if self._says[place] != state:
            self._says[place] = _UNKNOWN
            rewrite_text(place, self._text_at(place, state).to_bytes())
            self._says[place] = state

    def _text_at(self, place: Place, moved: int) -> Descriptor:
        """The descriptor at ``place`` when the first ``moved`` files have their new names."""
        subject = self._subject
        made = Descriptor.parse(subject.descriptor.to_bytes(), str(place))
        now = {part.old: part.new if i < moved else part.old for i, part in enumerate(self._parts)}
        if subject.header is not None:
            made.replace_extents([line.renamed(base_name(place.name)) for line in subject.lines])
        else:
            made.replace_extents(
                [
                    line if file is None else line.renamed(hint_for(place, now[file]))
                    for line, file in zip(subject.lines, subject.places, strict=True)
                ]
            )
        tracking = subject.descriptor.get("changeTrackPath")
        if tracking:
            file = extent_place(subject.place, tracking, ())
            if file in now:
                made.set("changeTrackPath", hint_for(place, now[file]))
        if self._hint is not None and place == self._target:
            made.set("parentFileNameHint", self._hint)
        return made
