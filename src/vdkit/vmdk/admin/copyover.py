"""Files copied to another store: complete and compared before they have their names.

Source of facts: none but the rules of a store.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

from vdkit.block.compare import compare
from vdkit.block.copy import copy
from vdkit.block.device import WritableDevice
from vdkit.errors import StoreError, VixError
from vdkit.vmdk.admin.subject import BESIDE
from vdkit.vmdk.names import Place
from vdkit.vmdk.textfile import write_text


class Copies:
    """The copies made so far. ``finish`` gives them their names, the last one last; ``undo`` removes them."""

    def __init__(self) -> None:
        self._made: list[Place] = []
        self._beside: list[tuple[Place, Place]] = []

    def copy(self, old: Place, new: Place, change: Callable[[WritableDevice], None] | None = None) -> None:
        """``change`` is made to the copy after it was found to be the same."""
        with old.open() as source, self._create(new, source.capacity) as target:
            copy(source, target, target_is_zero=True)
            target.flush()
            differs = compare(source, target)
            if differs is not None:
                raise StoreError(
                    f"{new}: byte {differs} is not what {old} holds after it was copied",
                    remedy="check the storage; the original was left as it is",
                )
            if change is not None:
                change(target)
                target.flush()

    def write(self, new: Place, data: bytes) -> None:
        with self._create(new, 0) as target:
            write_text(target, data)
            target.flush()

    def _create(self, new: Place, size: int) -> WritableDevice:
        beside = Place(new.store, f"{new.name}{BESIDE}")
        if beside.store.exists(beside.name):
            beside.store.remove(beside.name)
        made = beside.store.create(beside.name, size)
        self._made.append(beside)
        self._beside.append((beside, new))
        return made

    def finish(self) -> None:
        for beside, new in self._beside:
            beside.store.rename(beside.name, new.name)
            self._made.remove(beside)
            self._made.append(new)

    def undo(self) -> None:
        for place in self._made:
            with suppress(VixError):
                place.store.remove(place.name)


def drop_files(places: Sequence[Place]) -> None:
    """Remove files; the descriptor is the last, so that a removal that was interrupted can be repeated."""
    for place in places:
        place.store.remove(place.name)
