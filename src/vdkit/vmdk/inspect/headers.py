"""The fields of every header, by the names of the specifications, read one by one.

Source of facts: VMware's "Virtual Disk Format 5.0" (hosted sparse extents), its earlier edition (COWD), and
for seSparse the fields that ESXi's own log names, as published on qemu's mailing list.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from vdkit.block.device import BlockDevice
from vdkit.errors import FormatError
from vdkit.vmdk import cowd, header
from vdkit.vmdk.inspect.model import Field, Section
from vdkit.vmdk.kinds import SECTOR

#: A name, an offset, the ``struct`` code of a little-endian value; texts are ``<n>s``.
Layout = tuple[tuple[str, int, str], ...]

SPARSE: Final[Layout] = (
    ("magicNumber", 0, "4s"),
    ("version", 4, "I"),
    ("flags", 8, "I"),
    ("capacity", 12, "Q"),
    ("grainSize", 20, "Q"),
    ("descriptorOffset", 28, "Q"),
    ("descriptorSize", 36, "Q"),
    ("numGTEsPerGT", 44, "I"),
    ("rgdOffset", 48, "Q"),
    ("gdOffset", 56, "Q"),
    ("overHead", 64, "Q"),
    ("uncleanShutdown", 72, "B"),
    ("newlineTest", 73, "4s"),
    ("compressAlgorithm", 77, "H"),
)

COWD: Final[Layout] = (
    ("magicNumber", 0, "4s"),
    ("version", 4, "I"),
    ("flags", 8, "I"),
    ("numSectors", 12, "I"),
    ("grainSize", 16, "I"),
    ("gdOffset", 20, "I"),
    ("numGDEntries", 24, "I"),
    ("freeSector", 28, "I"),
    ("cylinders", 32, "I"),
    ("heads", 36, "I"),
    ("sectors", 40, "I"),
    ("parentGeneration", 1056, "I"),
    ("generation", 1060, "I"),
    ("name", 1064, "60s"),
    ("description", 1124, "512s"),
    ("savedGeneration", 1636, "I"),
    ("uncleanShutdown", 1648, "I"),
)

SESPARSE: Final[Layout] = tuple(
    (name, index * 8, "Q")
    for index, name in enumerate(
        (
            "magic", "version", "capacity", "grainSize", "grainTableSize", "flags",
            "reserved1", "reserved2", "reserved3", "reserved4",
            "volatileHeaderOffset", "volatileHeaderSize", "journalHeaderOffset", "journalHeaderSize",
            "journalOffset", "journalSize", "grainDirectoryOffset", "grainDirectorySize",
            "grainTablesOffset", "grainTablesSize", "freeBitmapOffset", "freeBitmapSize",
            "backmapOffset", "backmapSize", "grainsOffset", "grainsSize",
        )
    )
)  # fmt: skip

SESPARSE_VOLATILE: Final[Layout] = (
    ("magic", 0, "Q"),
    ("freeGTNumber", 8, "Q"),
    ("nextTxnSeqNumber", 16, "Q"),
    ("replayJournal", 24, "Q"),
)

SESPARSE_MAGIC: Final = 0xCAFEBABE
SESPARSE_VOLATILE_MAGIC: Final = 0xCAFECAFE

_FLAGS: Final = (
    (header.FLAG_NEWLINES, "newline test"),
    (header.FLAG_REDUNDANT, "redundant tables"),
    (header.FLAG_ZERO_GRAINS, "zeroed grains"),
    (header.FLAG_COMPRESSED, "compressed"),
    (header.FLAG_MARKERS, "markers"),
)


def peek(file: BlockDevice, offset: int, length: int) -> bytes:
    """Up to ``length`` bytes: fewer where the file ends, none for a place outside it."""
    length = min(length, file.capacity - offset)
    if offset < 0 or length <= 0:
        return b""
    data = bytearray(length)
    file.read_into(offset, data)
    return bytes(data)


def sparse_section(data: bytes, name: str, offset: int, file_size: int) -> Section:
    """A "KDMV" header or footer."""
    problems = [] if len(data) >= SECTOR else [f"cut short: {len(data)} of {SECTOR} bytes"]
    if not problems:
        try:
            parsed = header.SparseHeader.parse(data, name)
            parsed.check_layout(file_size, name)
        except FormatError as error:
            problems.append(str(error))
    return Section(name, offset, _fields(data, SPARSE, _sparse_note, file_size), tuple(problems))


def cowd_section(data: bytes, file_size: int) -> Section:
    name = "COWD header"
    problems = []
    try:
        cowd.CowdHeader.parse(data, file_size, name)
    except FormatError as error:
        problems.append(str(error))
    return Section(name, 0, _fields(data, COWD, _cowd_note, file_size), tuple(problems))


def sesparse_section(data: bytes, file_size: int) -> Section:
    fields = _fields(data, SESPARSE, _sesparse_note, file_size)
    problems = [] if len(data) >= SECTOR else [f"cut short: {len(data)} of {SECTOR} bytes"]
    if data[208:SECTOR].strip(b"\0"):
        problems.append("the padding behind the fields is not all zero")
    return Section("seSparse header", 0, fields, tuple(problems))


def sesparse_volatile(data: bytes, offset: int, file_size: int) -> Section:
    fields = _fields(data, SESPARSE_VOLATILE, _volatile_note, file_size)
    problems = [] if len(data) >= 32 else ["it lies outside the file"]
    return Section("seSparse volatile header", offset, fields, tuple(problems))


Note = Callable[[str, "int | str", int], "tuple[str, str]"]


def _fields(data: bytes, layout: Layout, note: Note, file_size: int) -> tuple[Field, ...]:
    """The fields that are whole in ``data``; ``note`` gives meaning and problem of a value."""
    made = []
    for name, offset, code in layout:
        size = struct.calcsize("<" + code)
        if offset + size > len(data):
            break
        (raw,) = struct.unpack_from("<" + code, data, offset)
        value = _printable(raw) if isinstance(raw, bytes) else int(raw)
        meaning, problem = note(name, value, file_size)
        made.append(Field(name, offset, size, value, meaning, problem))
    return tuple(made)


def _printable(raw: bytes) -> str:
    """Text up to its zero byte, with escapes for what cannot be shown; a magic as it stands."""
    kept = raw if len(raw) <= 4 else raw.partition(b"\0")[0]
    return ascii(kept.decode("latin-1"))[1:-1]


def _sectors(value: int) -> str:
    return f"{value * SECTOR} bytes"


def _place(value: int, file_size: int) -> tuple[str, str]:
    """Of a sector number: its byte, and whether the file has it."""
    return f"byte {value * SECTOR}", "past the end of the file" if value * SECTOR >= file_size else ""


def _sparse_note(name: str, value: int | str, file_size: int) -> tuple[str, str]:
    if isinstance(value, str):
        match name, value:
            case "magicNumber", "KDMV":
                return "", ""
            case "magicNumber", "kdmv":
                return "", "the mark of a file that was never finished"
            case "newlineTest", _:
                good = ascii(header.NEWLINES.decode("ascii"))[1:-1]
                return "", "" if value in (good, "\\x00" * 4) else "line ends were changed"
        return "", "not KDMV"
    match name:
        case "version":
            return "", "" if 1 <= value <= 3 else "1 to 3 are known"
        case "flags":
            known = 0
            for bit, _ in _FLAGS:
                known |= bit
            words = ", ".join(word for bit, word in _FLAGS if value & bit)
            unknown = value >> 16 << 16 & ~known
            return f"{value:#x}: {words or 'none'}", f"unknown flags {unknown:#x}" if unknown else ""
        case "capacity":
            return _sectors(value), "" if 0 < value <= header.MAX_CAPACITY_SECTORS else "not believable"
        case "grainSize":
            right = value > 0 and not value & (value - 1) and value <= header.MAX_GRAIN_SECTORS
            return _sectors(value), "" if right else "not a power of two that is believed"
        case "descriptorSize":
            return _sectors(value), ""
        case "gdOffset" if value == header.GD_AT_END:
            return "at the end: see the footer", ""
        case "descriptorOffset" | "rgdOffset" if value == 0:
            return "none", ""
        case "descriptorOffset" | "rgdOffset" | "gdOffset":
            return _place(value, file_size)
        case "numGTEsPerGT":
            return "", "" if value == header.ENTRIES_PER_TABLE else "512 is the only value known"
        case "overHead":
            return f"byte {value * SECTOR}", ""
        case "uncleanShutdown":
            return ("closed properly", "") if value == 0 else ("", "not closed properly")
        case "compressAlgorithm":
            known_names = {0: "none", 1: "deflate"}
            return known_names.get(value, ""), "" if value in known_names else "unknown"
    return "", ""


def _cowd_note(name: str, value: int | str, file_size: int) -> tuple[str, str]:
    if isinstance(value, str):
        return "", "not COWD" if name == "magicNumber" and value != "COWD" else ""
    match name:
        case "version":
            return "", "" if value == 1 else "only 1 is known"
        case "flags":
            return f"{value:#x}", "unknown flags" if value & ~cowd.FLAGS else ""
        case "numSectors":
            return _sectors(value), "" if value else "empty"
        case "grainSize":
            right = value > 0 and not value & (value - 1) and value <= cowd.MAX_GRAIN_SECTORS
            return _sectors(value), "" if right else "not a power of two up to 2048"
        case "gdOffset":
            return _place(value, file_size)
        case "freeSector":
            beyond = value * SECTOR > -(-file_size // SECTOR) * SECTOR
            return f"byte {value * SECTOR}", "past the end of the file" if beyond else ""
        case "uncleanShutdown":
            return ("closed properly", "") if value == 0 else ("", "not closed properly")
    return "", ""


def _sesparse_note(name: str, value: int | str, file_size: int) -> tuple[str, str]:
    if isinstance(value, str):
        return "", ""
    match name:
        case "magic":
            return f"{value:#x}", "" if value == SESPARSE_MAGIC else f"not {SESPARSE_MAGIC:#x}"
        case "version":
            known = value == 0x200000001
            return f"{value >> 32}.{value & 0xFFFFFFFF}", "" if known else "only 2.1 is known"
        case "grainSize":
            return _sectors(value), "" if value == 8 else "8 is the only value known"
        case "grainTableSize":
            return _sectors(value), "" if value == 64 else "64 is the only value known"
        case "flags" | "reserved1" | "reserved2" | "reserved3" | "reserved4":
            return "", "not zero" if value else ""
    if name.endswith("Offset"):
        return _place(value, file_size)
    return _sectors(value), ""


def _volatile_note(name: str, value: int | str, file_size: int) -> tuple[str, str]:
    del file_size
    if isinstance(value, str):
        return "", ""
    match name:
        case "magic":
            right = value == SESPARSE_VOLATILE_MAGIC
            return f"{value:#x}", "" if right else f"not {SESPARSE_VOLATILE_MAGIC:#x}"
        case "replayJournal":
            return ("clean", "") if value == 0 else ("", "the journal has not been replayed")
    return "", ""
