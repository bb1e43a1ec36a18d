"""The extent files that a split disk gets when it grows.

Source of facts: VMware's "Virtual Disk Format 5.0" and the names that VMware products give.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress

from vdkit.block.device import WritableDevice
from vdkit.block.extent import ExtentKind
from vdkit.block.memory import MemoryStore
from vdkit.errors import AlreadyExists, LimitExceeded, NotSupported, VixError
from vdkit.vmdk import sparse
from vdkit.vmdk.admin.sparsegrow import laid_out
from vdkit.vmdk.admin.subject import BESIDE, Subject
from vdkit.vmdk.descriptor import MAX_EXTENTS
from vdkit.vmdk.extentline import Access, ExtentLine
from vdkit.vmdk.header import SparseHeader
from vdkit.vmdk.kinds import SECTOR, ExtentForm, extent_form
from vdkit.vmdk.names import Place, base_name, stem
from vdkit.vmdk.split import piece_sectors

_NUMBERED = re.compile(r"(.*-[sf])([0-9]{3,})\.vmdk", re.IGNORECASE)


def split_size(subject: Subject, sectors: int) -> int:
    """Sectors that the last piece may have: as many as the others, at least all it has."""
    where = str(subject.place)
    flat = extent_form(subject.lines[-1].type, where) is ExtentForm.FLAT
    unit = 1 if flat else _header(subject).grain
    if len(subject.lines) > 1:
        size = subject.lines[0].sectors
    else:
        size = piece_sectors(sectors, None, flat=flat, unit=unit, where=where)
    size = max(size, -(-subject.lines[-1].sectors // unit) * unit)
    if size % unit:
        raise NotSupported(
            f"{where}: its pieces of {size} sectors are not made of whole grains of {unit}",
            remedy="convert it first",
        )
    return size


def _header(subject: Subject) -> SparseHeader:
    last = subject.places[-1]
    if last is None:
        raise NotSupported(f"{subject.place}: its last extent is not one that can be written")
    with last.open() as file:
        return sparse.read_header(file)


class NewPieces:
    """``sectors`` more of a disk, in files of their own; ``lines`` are their extent lines."""

    def __init__(self, subject: Subject, sectors: int, total: int) -> None:
        self._subject = subject
        self.lines: list[ExtentLine] = []
        if not sectors:
            return
        whole = split_size(subject, total)
        count = len(subject.lines) + -(-sectors // whole)
        if count > MAX_EXTENTS:
            raise LimitExceeded(f"{subject.place}: {count} extents are over the limit of {MAX_EXTENTS}")
        flat = extent_form(subject.lines[-1].type, str(subject.place)) is ExtentForm.FLAT
        names = self._names(flat=flat)
        while sectors:
            part = min(sectors, whole)
            offset = 0 if subject.lines[-1].offset_sectors is not None else None
            self.lines.append(
                ExtentLine(Access.RW, part, subject.lines[-1].type, names(), offset if flat else None)
            )
            sectors -= part

    def _names(self, *, flat: bool) -> Callable[[], str]:
        last = base_name((self._subject.lines[-1].file_name or "").replace("\\", "/"))
        found = _NUMBERED.fullmatch(last)
        front = (
            found.group(1) if found else f"{stem(base_name(self._subject.place.name))}-{'f' if flat else 's'}"
        )
        number = int(found.group(2)) if found else len(self._subject.lines)

        def following() -> str:
            nonlocal number
            number += 1
            return f"{front}{number:03d}.vmdk"

        return following

    def make_sparse(self, like: SparseHeader) -> None:
        """Empty extents of the same kind as the last one."""

        def fill(file: WritableDevice, line: ExtentLine) -> None:
            sparse.write_new(file, laid_out(like, line.sectors))
            file.flush()

        self._make(fill, _same_bytes(fill))

    def make_flat(self) -> None:
        def fill(file: WritableDevice, line: ExtentLine) -> None:
            file.resize(line.sectors * SECTOR)
            file.flush()

        def is_left_over(place: Place, line: ExtentLine) -> bool:
            with place.open() as file:
                size = line.sectors * SECTOR
                return file.capacity == size and all(run.kind is ExtentKind.ZERO for run in file.extents())

        self._make(fill, is_left_over)

    def _make(
        self,
        fill: Callable[[WritableDevice, ExtentLine], None],
        is_left_over: Callable[[Place, ExtentLine], bool],
    ) -> None:
        """All pieces, each under its name only once it is complete; a failure leaves none of them."""
        wanted = [(self._subject.place.beside(line.file_name or ""), line) for line in self.lines]
        missing = []
        for place, line in wanted:
            if not place.store.exists(place.name):
                missing.append((place, line))
            elif not is_left_over(place, line):
                raise AlreadyExists(f"{place}: it exists already", remedy="rename or remove it first")
        made: list[Place] = []
        try:
            for place, line in missing:
                beside = f"{place.name}{BESIDE}"
                if place.store.exists(beside):
                    place.store.remove(beside)
                made.append(Place(place.store, beside))
                with place.store.create(beside) as file:
                    fill(file, line)
                place.store.rename(beside, place.name)
                made[-1] = place
        except BaseException:
            for place in made:
                with suppress(VixError):
                    place.store.remove(place.name)
            raise


def _same_bytes(
    fill: Callable[[WritableDevice, ExtentLine], None],
) -> Callable[[Place, ExtentLine], bool]:
    """An empty extent, byte for byte as it would be made: what a run that was killed leaves."""

    def is_left_over(place: Place, line: ExtentLine) -> bool:
        with MemoryStore("expected").create("piece") as expected, place.open() as file:
            fill(expected, line)
            if file.capacity != expected.capacity:
                return False
            theirs, ours = bytearray(file.capacity), bytearray(file.capacity)
            file.read_into(0, theirs)
            expected.read_into(0, ours)
            return theirs == ours

    return is_left_over
