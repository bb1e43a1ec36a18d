"""Split disks (twoGbMaxExtentSparse, twoGbMaxExtentFlat): where a piece ends and what the pieces are called.

Source of facts: VMware's "Virtual Disk Format 5.0", the VDDK programming guide (smaller pieces may be asked
for) and the sizes found in disks made by VMware products.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from vdkit.errors import LimitExceeded, UsageError
from vdkit.vmdk.descriptor import MAX_EXTENTS
from vdkit.vmdk.kinds import SECTOR
from vdkit.vmdk.names import stem

#: What VMware cuts a sparse disk into: 2047 MiB, one table of 32 MiB less than 2 GiB.
SPARSE_SECTORS = 4_192_256
#: And a flat one: 256 KiB less than 2 GiB.
FLAT_SECTORS = 4_193_792
#: What newer products use: 4064 MiB. Taken where smaller pieces would fill a descriptor.
LARGE_SECTORS = 8_323_072
#: More pieces of the classic size than this (32 TiB) are avoided: their lines do not fit a descriptor.
_MANY = 16_384


class Piece(NamedTuple):
    """One extent file of a split disk."""

    file_name: str
    sectors: int


def piece_sectors(sectors: int, split: int | None, *, flat: bool, unit: int, where: str) -> int:
    """Sectors of a whole piece. ``split`` is what the caller wants, in bytes; ``unit`` is a grain's sectors.

    Pieces begin at whole grains: a disk of any others could not be written in place.
    """
    if split is None:
        usual = FLAT_SECTORS if flat else max(unit, SPARSE_SECTORS // unit * unit)
        if -(-sectors // usual) <= _MANY:
            return usual
        return max(unit, LARGE_SECTORS // unit * unit)
    if split <= 0 or split % (unit * SECTOR):
        raise UsageError(
            f"{where}: pieces of {split} bytes are not made of whole "
            f"{'sectors' if flat else 'grains'} of {unit * SECTOR} bytes"
        )
    if -(-sectors // (split // SECTOR)) > MAX_EXTENTS:
        raise LimitExceeded(
            f"{where}: pieces of {split} bytes would make more than {MAX_EXTENTS} files",
            remedy="use larger pieces",
        )
    return split // SECTOR


def pieces(name: str, sectors: int, per_piece: int, *, flat: bool) -> Iterator[Piece]:
    """The pieces of the disk ``name``, the last one with what is left; numbers of four digits after 999."""
    letter = "f" if flat else "s"
    number, position = 1, 0
    while position < sectors:
        length = min(per_piece, sectors - position)
        yield Piece(f"{stem(name)}-{letter}{number:03d}.vmdk", length)
        number += 1
        position += length
