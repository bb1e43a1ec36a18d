"""The text descriptor of a VMDK: read leniently, edited in place, written strictly.

Source of facts: VMware's "Virtual Disk Format 5.0" and descriptors written by other products. An edit
touches only its own line: unknown keys, comments, order, line ends and the bytes of all other lines stay as
they were.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from vdkit.errors import FormatError, LimitExceeded, NotADisk, UsageError
from vdkit.vmdk import encoding
from vdkit.vmdk.cid import NO_PARENT, format_cid, parse_cid
from vdkit.vmdk.extentline import ExtentLine, check_text, is_extent_line, parse_extent_line

MAX_DESCRIPTOR = 1 << 20
MAX_LINE = 1 << 16
MAX_LINES = 1 << 17
MAX_EXTENTS = 65536

SIGNATURE = "# Disk DescriptorFile"
_BOM = b"\xef\xbb\xbf"
_LINE = re.compile(rb"([^\r\n]*)(\r\n|\n|\r|$)")
#: Keys whose repetition with another value would make two readers see two disks.
_SINGLE = ("version", "encoding", "cid", "parentcid", "createtype", "parentfilenamehint")


@dataclass(slots=True)
class _Line:
    """``key`` is case-folded, empty for lines that are not ``key = value``."""

    raw: bytes
    end: bytes
    text: str
    key: str = ""
    value: str = ""
    extent: ExtentLine | None = None


class Descriptor:
    """The lines of a descriptor. ``where`` names it in errors."""

    def __init__(self, lines: list[_Line], label: str, where: str, bom: bytes = b"") -> None:
        self._lines = lines
        self._label = label
        self._where = where
        self._bom = bom

    # -- reading ---------------------------------------------------------------------------------

    @classmethod
    def parse(cls, data: bytes, where: str) -> Descriptor:
        """Raises NotADisk if this is no descriptor, BadEncoding, LimitExceeded, FormatError."""
        if len(data) > MAX_DESCRIPTOR:
            raise LimitExceeded(
                f"{where}: descriptor of {len(data)} bytes is over the limit of {MAX_DESCRIPTOR}"
            )
        data = data.partition(b"\0")[0]
        # Before they are taken apart: as objects, a million empty lines are a hundred times as large.
        if max(data.count(b"\n"), data.count(b"\r")) > MAX_LINES:
            raise LimitExceeded(f"{where}: more than {MAX_LINES} lines")
        bom = _BOM if data.startswith(_BOM) else b""
        pieces = [found.groups() for found in _LINE.finditer(data[len(bom) :])]
        pieces = [(raw, end) for raw, end in pieces if raw or end]
        if not looks_like_descriptor(data):
            raise NotADisk(
                f"{where}: not a VMDK descriptor (no version line at its start)",
                remedy="name a disk's descriptor or its only file; a raw image must be named as one",
            )
        label = encoding.detect([raw for raw, _ in pieces])
        lines: list[_Line] = []
        for number, (raw, end) in enumerate(pieces, 1):
            if len(raw) > MAX_LINE:
                raise LimitExceeded(f"{where}: line {number} is over the limit of {MAX_LINE} bytes")
            lines.append(_parse_line(raw, end, label, f"{where}, line {number}"))
        made = cls(lines, label, where, bom)
        made._check()
        return made

    def _check(self) -> None:
        if sum(line.extent is not None for line in self._lines) > MAX_EXTENTS:
            raise LimitExceeded(f"{self._where}: more than {MAX_EXTENTS} extent lines")
        for key in _SINGLE:
            values = {line.value for line in self._lines if line.key == key}
            if len(values) > 1:
                raise FormatError(f"{self._where}: {key!r} is given more than once, with different values")

    def get(self, key: str) -> str | None:
        """The value of a header key or a ``ddb.`` key, without quotes; keys are case-insensitive."""
        line = self._find(key)
        return None if line is None else line.value

    def items(self, prefix: str = "") -> Iterator[tuple[str, str]]:
        """``(key, value)`` as spelled in the file, in order, of the keys that start with ``prefix``."""
        for line in self._lines:
            if line.key and line.key.startswith(prefix.casefold()):
                yield line.text.partition("=")[0].strip(), line.value

    @property
    def extents(self) -> tuple[ExtentLine, ...]:
        return tuple(line.extent for line in self._lines if line.extent is not None)

    @property
    def sectors(self) -> int:
        """Size of the disk in sectors of 512 bytes: the sum of its extents."""
        return sum(extent.sectors for extent in self.extents)

    @property
    def encoding(self) -> str:
        """The charset label in force."""
        return self._label

    @property
    def version(self) -> int:
        text = self.get("version") or ""
        return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else 0

    @property
    def create_type(self) -> str:
        return self.get("createType") or ""

    @property
    def cid(self) -> int:
        return self._cid("CID", NO_PARENT)

    @property
    def parent_cid(self) -> int:
        """:data:`~vdkit.vmdk.cid.NO_PARENT` for a base."""
        return self._cid("parentCID", NO_PARENT)

    @property
    def parent_hint(self) -> str | None:
        return self.get("parentFileNameHint") or None

    def _cid(self, key: str, default: int) -> int:
        text = self.get(key)
        return default if text is None else parse_cid(text, f"{self._where}, {key}")

    def _find(self, key: str) -> _Line | None:
        folded = key.casefold()
        return next((line for line in self._lines if line.key == folded), None)

    # -- editing ---------------------------------------------------------------------------------

    def set(self, key: str, value: str, *, quoted: bool = True) -> None:
        """Change one value where it stands, or add a line; ``ddb.`` keys are always quoted."""
        check_text(key, "descriptor key")
        check_text(value, "descriptor value")
        if not re.fullmatch(r"[A-Za-z0-9_.]+", key):
            raise UsageError(f"descriptor key {key!r} is not made of letters, digits, dots and underscores")
        line = self._find(key)
        if line is not None:
            head, _, tail = line.text.partition("=")
            blanks = tail[: len(tail) - len(tail.lstrip())]
            quote = '"' if quoted or tail.strip().startswith('"') else ""
            self._put(line, f"{head}={blanks}{quote}{value}{quote}")
        elif key.casefold().startswith("ddb."):
            self._add(f'{key} = "{value}"', after_ddb=True)
        else:
            self._add(f'{key}="{value}"' if quoted else f"{key}={value}", after_ddb=False)

    def remove(self, key: str) -> None:
        """Drop a key's line; one that is not there is fine."""
        folded = key.casefold()
        self._lines = [line for line in self._lines if line.key != folded]

    def set_cid(self, cid: int) -> None:
        """A new content id; the low word of ``ddb.longContentID`` follows it."""
        self.set("CID", format_cid(cid), quoted=False)
        long_id = self.get("ddb.longContentID")
        if long_id is not None and len(long_id) >= 8:
            self.set("ddb.longContentID", long_id[:-8] + format_cid(cid))

    def replace_extents(self, extents: list[ExtentLine]) -> None:
        """Other extent lines in the place of the present ones; those that stay keep their bytes."""
        at = next((i for i, line in enumerate(self._lines) if line.extent is not None), len(self._lines))
        present = {line.extent: line for line in self._lines if line.extent is not None}
        self._lines = [line for line in self._lines if line.extent is None]
        made = []
        for extent in extents:
            line = present.get(extent)
            made.append(self._made(str(extent)) if line is None else replace(line, end=self._newline))
        self._lines[at:at] = made

    def to_bytes(self) -> bytes:
        """The file's content; raises LimitExceeded if it has grown over the limit."""
        data = self._bom + b"".join(line.raw + line.end for line in self._lines)
        if len(data) > MAX_DESCRIPTOR:
            raise LimitExceeded(
                f"{self._where}: descriptor of {len(data)} bytes is over the limit of {MAX_DESCRIPTOR}"
            )
        return data

    def _put(self, line: _Line, text: str) -> None:
        made = self._made(text)
        line.raw, line.text, line.key, line.value = made.raw, made.text, made.key, made.value

    def _made(self, text: str) -> _Line:
        raw = encoding.encode(text, self._label, self._where)
        if len(raw) > MAX_LINE:
            raise LimitExceeded(f"{self._where}: a line of {len(raw)} bytes is over the limit of {MAX_LINE}")
        return _parse_line(raw, self._newline, self._label, self._where)

    @property
    def _newline(self) -> bytes:
        return next((line.end for line in self._lines if line.end), b"\n")

    def _add(self, text: str, *, after_ddb: bool) -> None:
        at = len(self._lines)
        for i, line in enumerate(self._lines):
            if line.extent is not None and not after_ddb:
                break  # some readers look for header keys above the extents only
            if line.key and line.key.startswith("ddb.") == after_ddb:
                at = i + 1
        if at == len(self._lines) and self._lines and not self._lines[-1].end:
            self._lines[-1].end = self._newline
        self._lines.insert(at, self._made(text))


def looks_like_descriptor(data: bytes) -> bool:
    """VMware's own rule: the first line that is neither blank nor a comment is ``version=<digits>``."""
    for found in _LINE.finditer(data.removeprefix(_BOM)[: 1 << 14]):
        raw = found.group(1).strip()
        if raw and not raw.startswith(b"#"):
            return re.fullmatch(rb'version[ \t]*=[ \t]*"?[0-9]{1,9}"?', raw, re.IGNORECASE) is not None
    return False


def _parse_line(raw: bytes, end: bytes, label: str, where: str) -> _Line:
    text = encoding.decode(raw, label, where)
    line = _Line(raw, end, text)
    bare = text.strip()
    if not bare or bare.startswith("#"):
        return line
    if is_extent_line(text):
        line.extent = parse_extent_line(text, where)
        return line
    key, equals, value = bare.partition("=")
    if not equals or not key.strip():
        # Skipping what is not understood could skip a piece of the disk.
        raise FormatError(f"{where}: {bare[:80]!r} is neither an option nor an extent line")
    line.key = key.strip().casefold()
    line.value = _unquoted(value.strip())
    return line


def _unquoted(text: str) -> str:
    if not text.startswith('"'):
        return text
    inner, quote, _ = text[1:].rpartition('"')
    return inner if quote else text[1:]
