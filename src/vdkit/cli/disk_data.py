"""Commands that read and write bytes of local disks, and take their files apart: read, write, inspect."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from vdkit.cli.diskoptions import (
    AllowOption,
    DiskArgument,
    FormatOption,
    JournalOption,
    check_no_children,
    parse_size,
)
from vdkit.cli.output import flush_output, human_size, print_note, print_text
from vdkit.errors import OutOfRange, UsageError, from_os_error

if TYPE_CHECKING:
    from vdkit.block.device import BlockDevice

_CHUNK = 1 << 20


def add_to(app: typer.Typer) -> None:
    app.command("read")(read)
    app.command("write")(write)


def read(
    disk: DiskArgument,
    offset: Annotated[str, typer.Argument(help="Where to begin: bytes, 512M, or 63s for sectors.")],
    length: Annotated[str, typer.Argument(help="How much: bytes, 64K, or 8s.")],
    as_hex: Annotated[bool, typer.Option("--hex", help="Print it in hexadecimal, for people.")] = False,
    from_: FormatOption = None,
    allow_path: AllowOption = None,
    ignore_journal: JournalOption = False,
) -> None:
    """Write a range of a disk, its parents included, to standard output.

    Example: vdkit read vm/vm.vmdk 0 1s --hex
    """
    from vdkit.disklib.opening import open_local

    start, count = parse_size(offset, "OFFSET"), parse_size(length, "LENGTH")
    if not as_hex and sys.stdout.isatty():
        raise UsageError("bytes are not written to a terminal", remedy="say --hex, or send them into a file")
    with open_local(
        disk, source_format=from_, allow_paths=allow_path or [], ignore_journal=ignore_journal
    ) as opened:
        _check_range(opened, start, count)
        for position, data in _pieces(opened, start, count):
            if as_hex:
                for line in _hex_lines(position, data):
                    print_text(line)
            else:
                _emit(data)
    flush_output()


def _check_range(disk: BlockDevice, start: int, count: int) -> None:
    if start + count > disk.capacity:
        raise OutOfRange(
            f"{disk.name}: {count} bytes at offset {start} end past its {disk.capacity} bytes",
            remedy="choose a range inside the disk",
        )


def _pieces(disk: BlockDevice, start: int, count: int) -> Iterator[tuple[int, bytes]]:
    unit = disk.alignment
    end = start + count
    while start < end:
        stop = min(end, start // _CHUNK * _CHUNK + _CHUNK)
        low = start // unit * unit
        buffer = bytearray(min(-(-stop // unit) * unit, disk.capacity) - low)
        disk.read_into(low, buffer)
        yield start, bytes(buffer[start - low : stop - low])
        start = stop


def _emit(data: bytes) -> None:
    try:
        sys.stdout.buffer.write(data)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise from_os_error(error, "writing to standard output") from error


def _hex_lines(offset: int, data: bytes) -> Iterator[str]:
    """As ``hexdump -C``: repeated lines are one star."""
    last = b""
    starred = False
    for at in range(0, len(data), 16):
        row = data[at : at + 16]
        if row == last and at + 16 < len(data):
            if not starred:
                yield "*"
                starred = True
            continue
        last, starred = row, False
        words = f"{row[:8].hex(' ')}  {row[8:].hex(' ')}"
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        yield f"{offset + at:012x}  {words:<48}  |{text}|"


def write(
    disk: DiskArgument,
    offset: Annotated[str, typer.Argument(help="Where to begin: bytes, 512M, or 63s for sectors.")],
    from_: FormatOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="Even if other disks have it as their parent; they will not open.")
    ] = False,
    allow_path: AllowOption = None,
) -> None:
    """Write standard input into a disk from an offset on; of a chain only the leaf is changed.

    Example: vdkit write vm/vm.vmdk 0 < bootsector
    """
    from vdkit.block.device import WritableDevice
    from vdkit.disklib.opening import detect, open_local

    start = parse_size(offset, "OFFSET")
    source = sys.stdin.buffer
    if sys.stdin.isatty():
        raise UsageError("what to write is read from standard input, not from a terminal")
    if not force and (from_ or detect(disk)) == "vmdk":
        check_no_children(disk, "which would no longer open")
    with open_local(disk, writable=True, source_format=from_, allow_paths=allow_path or []) as opened:
        if not isinstance(opened, WritableDevice):
            raise UsageError(f"{disk}: it cannot be written")
        size = _size_of(source)
        if size is not None:
            _check_range(opened, start, size)
        position = start
        while data := source.read(_CHUNK):
            if position + len(data) > opened.capacity:
                written = f"{position - start} bytes were written before"
                raise OutOfRange(f"{opened.name}: its end at {opened.capacity} was reached; {written}")
            opened.write_from(position, data)
            position += len(data)
        opened.flush()
    print_note(f"{disk}: {human_size(position - start)} written at offset {start}")


def _size_of(source: BinaryIO) -> int | None:
    """What is left of a file; None for a pipe."""
    try:
        if not source.seekable():
            return None
        return os.fstat(source.fileno()).st_size - source.tell()
    except OSError:
        return None
