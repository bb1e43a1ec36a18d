"""Content ids: 32 random bits that change when a disk's content does.

Source of facts: VMware's "Virtual Disk Format 5.0" (a new id at the first write after each open) and
descriptors written by VMware, qemu and Xen Orchestra, which do not all write eight lower-case hex digits.
"""

from __future__ import annotations

import os
import re

from vdkit.errors import FormatError

#: ``parentCID`` of a disk without a parent.
NO_PARENT = 0xFFFFFFFF
#: Initial value that some products write; never drawn.
FRESH = 0xFFFFFFFE

_HEX = re.compile(r"(?:0x)?([0-9a-f]{1,32})", re.IGNORECASE)


def parse_cid(text: str, where: str) -> int:
    """Any count of hex digits, any case, cut to 32 bits."""
    found = _HEX.fullmatch(text.strip())
    if found is None:
        raise FormatError(f"{where}: content id {text[:40]!r} is not a hexadecimal number")
    return int(found.group(1), 16) & 0xFFFFFFFF


def format_cid(cid: int) -> str:
    return f"{cid:08x}"


def new_cid() -> int:
    """Random; neither of the reserved values, nor 0, which some readers take for 'none'."""
    return 1 + int.from_bytes(os.urandom(8), "little") % (FRESH - 1)


def new_long_id(cid: int) -> str:
    """A random 128-bit ``longContentID`` whose low word is ``cid``, as VMware writes it."""
    return os.urandom(12).hex() + format_cid(cid)


def new_uuid() -> str:
    """A ``ddb.uuid`` in VMware's form: ``60 00 C2 9x`` and twelve more bytes, a dash after the eighth."""
    data = bytes((0x60, 0x00, 0xC2, 0x90 | os.urandom(1)[0] & 15)) + os.urandom(12)
    return f"{data[:8].hex(' ')}-{data[8:].hex(' ')}"
