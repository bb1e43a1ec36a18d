"""Addresses of blocks, sub-blocks, pointer blocks and descriptors: 32 bits in VMFS-5, 64 in VMFS-6.

Source of facts: our notes on VMFS, section 2.6. What large blocks, to-be-zeroed and copy-on-write bits look
like on a real host has not been seen on any public image (``docs/explanation/fidelity.md``).
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple


class Kind(IntEnum):
    """The low three bits of an address."""

    NONE = 0
    BLOCK = 1
    SUB_BLOCK = 2
    POINTERS = 3
    DESCRIPTOR = 4
    POINTERS_2 = 5
    JOURNAL = 6
    LARGE_BLOCK = 7


class Address(NamedTuple):
    """``number`` is a block's; all else, and small blocks of VMFS-6, are a ``resource`` of a ``cluster``.

    ``zeroed``: the mask of what reads as zeroes although it is allocated. ``shared``: copy on write.
    """

    kind: Kind
    number: int = 0
    cluster: int = 0
    resource: int = 0
    zeroed: int = 0
    shared: bool = False


def decode_5(value: int, dense: bool) -> Address:
    """An address of VMFS-5. ``dense``: sub-blocks have two more bits of resource."""
    kind = Kind(value & 7)
    match kind:
        case Kind.NONE:
            return Address(kind)
        case Kind.BLOCK:
            mask = 0xFF if value >> 5 & 1 else 0
            return Address(kind, value >> 6, zeroed=mask, shared=bool(value >> 4 & 1))
        case Kind.SUB_BLOCK:
            resource = value >> 28 & 0xF
            if dense:
                resource |= (value >> 3 & 3) << 4
            return Address(
                kind, cluster=value >> 6 & 0x3FFFFF, resource=resource, shared=bool(value >> 5 & 1)
            )
        case Kind.POINTERS | Kind.POINTERS_2:
            return Address(
                kind, cluster=value >> 6 & 0x3FFFFF, resource=value >> 28 & 0xF, shared=bool(value >> 5 & 1)
            )
        case Kind.DESCRIPTOR:
            return Address(kind, cluster=value >> 6 & 0xFFFF, resource=value >> 22 & 0x3FF)
        case Kind.JOURNAL | Kind.LARGE_BLOCK:
            return Address(kind)


def decode_6(value: int) -> Address:
    """An address of VMFS-6; a descriptor's has 32 bits."""
    kind = Kind(value & 7)
    shared = bool(value >> 5 & 1)
    match kind:
        case Kind.NONE:
            return Address(kind)
        case Kind.BLOCK:
            cluster, resource = value >> 15 & 0x7FFFFFFF, value >> 51
            return Address(kind, 0, cluster, resource, value >> 7 & 0xFF, shared)
        case Kind.SUB_BLOCK | Kind.POINTERS | Kind.POINTERS_2:
            return Address(kind, cluster=value >> 6 & 0xFFFFFFFFF, resource=value >> 56, shared=shared)
        case Kind.DESCRIPTOR:
            return decode_5(value & 0xFFFFFFFF, dense=False)
        case Kind.JOURNAL:
            return Address(kind, cluster=value >> 3 & 0x1FFF, resource=value >> 26 & 0x3F)
        case Kind.LARGE_BLOCK:
            return Address(kind, value >> 15 & 0x7FFFFFFF, zeroed=value >> 7 & 0xFF, shared=shared)
