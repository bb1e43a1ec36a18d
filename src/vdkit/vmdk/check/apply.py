"""Writing a repair: over the disk, with an undo file, or into a copy.

Source of facts: VMware's "Virtual Disk Format 5.0" (which names in a descriptor follow its own).
"""

from __future__ import annotations

from contextlib import suppress

from vdkit.block.copy import copy
from vdkit.block.device import BlockDevice, WritableDevice
from vdkit.block.extent import RangeSet
from vdkit.block.store import Store
from vdkit.errors import AlreadyExists, NotSupported, VixError
from vdkit.vmdk.check.context import Context, read
from vdkit.vmdk.check.headercheck import CRLF_TEST
from vdkit.vmdk.check.patch import Patch, PatchedFiles
from vdkit.vmdk.check.subject import Subject, look_at_link
from vdkit.vmdk.check.undo import DONE, mark, undo_repair, write_undo
from vdkit.vmdk.header import MAGIC, UNFINISHED_MAGIC
from vdkit.vmdk.kinds import SECTOR
from vdkit.vmdk.names import Place, base_name, hint_for, parent_place, stem

_CHUNK = 1 << 20


def apply_in_place(place: Place, files: PatchedFiles, undo: str, ctx: Context) -> None:
    """The undo file first; then the files, what is new before what points to it, headers last."""
    changed = files.changed()
    for other in changed:
        if other.store is not place.store:
            raise NotSupported(
                f"{other}: lies outside the disk's folder and is not repaired in place",
                remedy="make a repaired copy",
            )
    write_undo(place.store, undo, place.name, {other.name: patch for other, patch in changed.items()})
    try:
        for other in sorted(changed, key=lambda other: other == place):
            ctx.step(str(other), 0, 1)
            _apply(other.store, other.name, changed[other])
        mark(place.store, undo, DONE)
    except VixError:
        # A full file system, say. If putting back fails as well, the undo file stays for another try.
        with suppress(VixError):
            undo_repair(place.store, undo)
        raise


def _apply(store: Store, name: str, patch: Patch) -> None:
    opened = store.create(name) if patch.created else store.open_writable(name)
    with opened as file:
        old = patch.base.capacity
        if patch.capacity > old:
            file.resize(patch.capacity)
        runs = patch.changes()
        _write_runs(file, patch, runs.clip(old, max(0, patch.capacity - old)))
        file.flush()
        _write_runs(file, patch, runs.clip(SECTOR, max(0, old - SECTOR)))
        if patch.capacity < old:
            file.resize(patch.capacity)
        file.flush()
        _write_runs(file, patch, runs.clip(0, min(SECTOR, old)))
        file.flush()


def _write_runs(file: WritableDevice, patch: BlockDevice, runs: RangeSet) -> None:
    for offset, length in runs.split(_CHUNK):
        data = bytearray(length)
        patch.read_into(offset, data)
        file.write_from(offset, data)


# -- a copy ----------------------------------------------------------------------------------------


def copy_repaired(place: Place, files: PatchedFiles, target: str, ctx: Context, *, ready: str | None) -> None:
    """Every file of the link under a name that goes with ``target``; ``ready``: the copy is there already."""
    store = place.store
    subject = look_at_link(Context(files, ctx.allow_paths), place)
    names = _names(subject, target)
    goal = Place(store, target)
    for name in names.values():
        if name != ready and store.exists(name):
            raise AlreadyExists(f"{store.name}/{name}: exists already", remedy="choose another name")
    text = _renamed(subject, names, goal, ctx)
    made: list[str] = [] if ready is None else [ready]
    try:
        # The descriptor comes last: before, nothing takes the files for a disk.
        for source, name in sorted(names.items(), key=lambda item: item[0] == place):
            if name == ready:
                _apply(store, name, files.patches[source])
                continue
            view = files.open(source)
            with view:
                _copy_file(store, name, view, made, ctx, text if source == place else None, subject)
    except BaseException:
        for name in reversed(made):
            with suppress(VixError):
                store.remove(name)
        raise


def _names(subject: Subject, target: str) -> dict[Place, str]:
    """Files to copy, and what the copies are called."""
    place = subject.place
    names = {place: target}
    start = stem(base_name(place.name))
    goal = Place(place.store, target)
    for view in subject.extents:
        other = view.place
        if other is None or other in names or view.missing:
            continue
        rest = base_name(other.name)
        own = rest.removeprefix(start) if rest.startswith(start) else f"-{rest}"
        names[other] = goal.beside(stem(base_name(target)) + own).name
    return names


def _renamed(subject: Subject, names: dict[Place, str], goal: Place, ctx: Context) -> bytes | None:
    """The descriptor with the new names of the extent files, and its parent as seen from the copy."""
    descriptor = subject.descriptor
    if descriptor is None:
        return None
    by_name = {base_name(old.name): base_name(new) for old, new in names.items()}
    lines = []
    for line in descriptor.extents:
        name = (
            base_name(goal.name)
            if subject.embedded
            else by_name.get(base_name((line.file_name or "").replace("\\", "/")))
        )
        lines.append(line if line.file_name is None or name is None else line.renamed(name))
    descriptor.replace_extents(lines)
    hint = descriptor.parent_hint
    if hint is not None and subject.has_parent and goal.folder != subject.place.folder:
        with suppress(VixError):  # one that leads nowhere stays as it is
            parent = parent_place(subject.place, hint, ctx.allow_paths)
            descriptor.set("parentFileNameHint", hint_for(goal, parent))
    text = descriptor.to_bytes()
    if subject.embedded is not None and len(text) > subject.embedded[1]:
        return None  # the name inside means nothing: the old one may stay
    return text


def _copy_file(
    store: Store,
    name: str,
    view: BlockDevice,
    made: list[str],
    ctx: Context,
    text: bytes | None,
    subject: Subject,
) -> None:
    if text is not None and subject.embedded is None:
        with store.create(name, len(text)) as out:
            made.append(name)
            out.write_from(0, text)
            out.flush()
        return
    with store.create(name, view.capacity) as out:
        made.append(name)
        head = bytes(read(view, 0, SECTOR))
        copy(
            view,
            out,
            target_is_zero=True,
            ranges=RangeSet([(SECTOR, max(0, view.capacity - SECTOR))]),
            cancel=ctx.cancel,
        )
        if head.startswith(MAGIC):
            out.write_from(0, UNFINISHED_MAGIC + head[4:])
        if text is not None and subject.embedded is not None:
            offset, room = subject.embedded
            out.write_from(offset, text.ljust(room, b"\0"))
        out.flush()
        out.write_from(0, head)
        out.flush()


def can_unmangle(place: Place) -> bool:
    """The disk's own file has a carriage return before every line feed: none was taken out."""
    with place.open() as file:
        return bytes(read(file, 73, len(CRLF_TEST))) == CRLF_TEST


def unmangle(place: Place, target: str, ctx: Context) -> None:
    """A copy without the carriage returns that a transfer in text mode has put before every line feed."""
    store = place.store
    with place.open() as source, store.create(target) as out:
        position = 0
        held = b""
        try:
            for offset in range(0, source.capacity, _CHUNK):
                ctx.step(str(place), offset, source.capacity)
                data = held + bytes(read(source, offset, _CHUNK))
                # A CR at the end may belong to the LF that comes next.
                held = b"\r" if data.endswith(b"\r") and offset + _CHUNK < source.capacity else b""
                data = data[: len(data) - len(held)].replace(b"\r\n", b"\n")
                out.resize(position + len(data))
                out.write_from(position, data)
                position += len(data)
            out.flush()
        except BaseException:
            store.remove(target)
            raise
