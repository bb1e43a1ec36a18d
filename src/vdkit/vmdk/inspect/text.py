"""The descriptor line by line, as it stands in the file.

Source of facts: VMware's "Virtual Disk Format 5.0".
"""

from __future__ import annotations

import re
from typing import Final

from vdkit.errors import FormatError
from vdkit.vmdk import encoding
from vdkit.vmdk.descriptor import MAX_DESCRIPTOR, Descriptor
from vdkit.vmdk.extentline import is_extent_line, parse_extent_line
from vdkit.vmdk.inspect.model import DescriptorDump, DescriptorLine

#: Lines that are shown, and letters of each.
MAX_LINES: Final = 4096
MAX_SHOWN: Final = 512

_ENDS = re.compile(rb"\r\n|\n|\r")


def dump_text(data: bytes, where: str, *, offset: int = 0) -> DescriptorDump:
    """``data`` is the whole area of the descriptor, its padding included."""
    room = len(data)
    kept = data[:MAX_DESCRIPTOR].partition(b"\0")[0]
    problems: list[str] = []
    try:
        label = Descriptor.parse(kept, where).encoding
    except FormatError as error:
        problems.append(str(error))
        label = encoding.FALLBACK
    raw_lines = _ENDS.split(kept.removeprefix(b"\xef\xbb\xbf"))
    if raw_lines and not raw_lines[-1]:
        raw_lines.pop()
    if len(raw_lines) > MAX_LINES:
        problems.append(f"{len(raw_lines)} lines, the first {MAX_LINES} are shown")
    lines = tuple(_line(number, raw, label) for number, raw in enumerate(raw_lines[:MAX_LINES], 1))
    return DescriptorDump(offset, room, label, lines, tuple(problems))


def _line(number: int, raw: bytes, label: str) -> DescriptorLine:
    where = f"line {number}"
    problem = ""
    try:
        text = encoding.decode(raw, label, where)
    except FormatError as error:
        text, problem = raw.decode("latin-1"), str(error)
    shown = text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}... ({len(text)} letters)"
    bare = text.strip()
    if not bare:
        kind = "blank"
    elif bare.startswith("#"):
        kind = "comment"
    elif is_extent_line(text):
        kind = "extent"
        try:
            parse_extent_line(text, where)
        except FormatError as error:
            problem = problem or str(error)
    elif bare.partition("=")[0].strip() and "=" in bare:
        kind = "database" if bare.casefold().startswith("ddb.") else "option"
    else:
        kind, problem = "unreadable", problem or "neither an option nor an extent line"
    return DescriptorLine(number, kind, shown, problem)
