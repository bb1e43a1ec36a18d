"""One extent line of a descriptor: which file holds which run of the disk.

``RW 4192256 SPARSE "disk-s001.vmdk"`` or ``RW 63 FLAT "disk-pt.vmdk" 126``. Source of facts: VMware's
"Virtual Disk Format 5.0". Reading allows any case and any blanks; writing uses VMware's own form.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, replace
from enum import Enum

from vdkit.errors import FormatError, UsageError

#: No extent line that is believed names more sectors than this (4 EiB).
MAX_SECTORS = 1 << 53

_START = re.compile(r"[ \t]*(RW|RDONLY|NOACCESS)[ \t]+(.*)", re.IGNORECASE | re.DOTALL)
_NUMBER = re.compile(r"[0-9]{1,19}")


class Access(Enum):
    RW = "RW"
    RDONLY = "RDONLY"
    NOACCESS = "NOACCESS"


@dataclass(frozen=True, slots=True)
class ExtentLine:
    """``type`` is upper case; ``offset_sectors`` counts inside the file; ``rest`` is kept as it was."""

    access: Access
    sectors: int
    type: str
    file_name: str | None = None
    offset_sectors: int | None = None
    rest: str = ""

    def __str__(self) -> str:
        parts = [self.access.value, str(self.sectors), self.type]
        if self.file_name is not None:
            check_text(self.file_name, "extent file name")
            parts.append(f'"{self.file_name}"')
        if self.offset_sectors is not None:
            parts.append(str(self.offset_sectors))
        if self.rest:
            parts.append(self.rest)
        return " ".join(parts)

    def renamed(self, file_name: str) -> ExtentLine:
        return replace(self, file_name=file_name)


def is_extent_line(text: str) -> bool:
    return _START.fullmatch(text) is not None


def parse_extent_line(text: str, where: str) -> ExtentLine:
    """``where`` names file and line in the error."""
    start = _START.fullmatch(text)
    if start is None:
        raise FormatError(f"{where}: {text[:80]!r} is not an extent line")
    access = Access(start.group(1).upper())
    before, quote, after = start.group(2).partition('"')
    words = before.split()
    if len(words) != 2 and not (not quote and len(words) > 2):
        raise FormatError(f"{where}: extent line {text[:80]!r} does not have a size and a type")
    sectors = _number(words[0], where, "size")
    kind, rest = words[1].upper(), words[2:]
    name: str | None = None
    if quote:
        name, closed, tail = after.partition('"')
        if not closed or not name:
            raise FormatError(f"{where}: extent line {text[:80]!r} has no complete file name in quotes")
        rest = tail.split()
    offset: int | None = None
    # A number that is too long must not pass for a word: the extent would begin somewhere else.
    if quote and rest and re.match(r"[-+]?[0-9]", rest[0]):
        offset = _number(rest[0], where, "offset")
        rest = rest[1:]
    return ExtentLine(access, sectors, kind, name, offset, " ".join(rest))


def check_text(text: str, what: str) -> None:
    """Refuse what would end the quotes or the line: the format has no escape for it."""
    for char in text:
        if char == '"' or unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp"):
            raise UsageError(f"{what} {text!r} holds {char!r}, which a VMDK descriptor cannot express")


def _number(text: str, where: str, what: str) -> int:
    if _NUMBER.fullmatch(text) is None or int(text) > MAX_SECTORS:
        raise FormatError(
            f"{where}: extent {what} {text[:40]!r} is not a number of sectors up to {MAX_SECTORS}"
        )
    return int(text)
